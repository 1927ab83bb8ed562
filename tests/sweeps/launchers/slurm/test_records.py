"""The records of the jobs that a command of a sweep has submitted to Slurm."""

from pathlib import Path

from nanolm.sweeps.launchers.slurm.records import RECORDS, claim_folder, leave_folder, other_commands, write_records


def test_records_are_read_by_the_next_command(tmp_path: Path) -> None:
    first, second = (tmp_path / ".submitit" / name for name in ("first", "second"))
    lock = claim_folder(first)
    write_records(first, {"101_0": "seed=1", "101_1": "seed=2"}, tmp_path / ".stop-node1-7")
    write_records(first, {"102": "seed=3"}, tmp_path / ".stop-node1-7")
    (command,) = other_commands(second)
    assert command.jobs == {"101_0": "seed=1", "101_1": "seed=2", "102": "seed=3"}
    assert command.stop_file == tmp_path / ".stop-node1-7"
    assert command.is_alive()
    assert not list(other_commands(first))
    lock.release()
    assert not command.is_alive()


def test_damaged_records_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / ".submitit" / "first"
    folder.mkdir(parents=True)
    lines = [
        '{"job": "101_0", "run": "seed=1", "stop_file": "../../.stop-of-another"}',
        '{"job": "101_1; rm -rf .", "run": "seed=2", "stop_file": null}',
        '{"job": "101_2", "stop_file": ".stop-node1-7"}',
        '{"job": 3, "run": "seed=3"}',
        "[]",
        '{"job": "101_4", "ru',
    ]
    (folder / RECORDS).write_text("\n".join(lines))
    (tmp_path / ".submitit" / "link").symlink_to(folder)
    (command,) = other_commands(tmp_path / ".submitit" / "second")
    assert command.jobs == {"101_0": "seed=1"}
    assert command.stop_file is None


def test_logs_stay_when_a_command_ends(tmp_path: Path) -> None:
    folder = tmp_path / ".submitit" / "first"
    lock = claim_folder(folder)
    for name in ("101_submission.sh", "102_submission.sh", "101_3_0_log.err"):
        (folder / name).touch()
    leave_folder(folder, lock)
    assert sorted(path.name for path in folder.iterdir()) == ["101_3_0_log.err", "101_submission.sh"]
