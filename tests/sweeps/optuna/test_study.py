"""A study in its folder: shared, cut off at any place, and never told a thing twice."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from nanolm.errors import RunError
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import MetricsRow, encode_row
from nanolm.runs.summary import Summary, write_summary
from nanolm.sweeps.optuna.samplers import FAILED
from nanolm.sweeps.optuna.settings import OptunaConfig
from nanolm.sweeps.optuna.space import Choice, Interval
from nanolm.sweeps.optuna.study import (
    FOLDER,
    JOURNAL,
    OpenStudy,
    Watch,
    drop_torn_line,
    n_impossible,
    name_of,
    open_study,
    others_at_work,
    owner,
    point_of,
    reject,
    report,
    settle,
    take,
    watch,
)
from nanolm.sweeps.states import read_run

SPACE = (Interval("lr", 1e-4, 1e-1, is_log=True), Choice("model", ("gpt", "gpt2")))


def opened(folder: Path, pruner: str = "asha", n_trials: int = 6) -> OpenStudy:
    settings = OptunaConfig(sampler="random", pruner=pruner, n_trials=n_trials, min_steps=10, reduction_factor=3)
    return open_study(folder, "study", settings, SPACE, max_steps=90)


def run_with(path: Path, status: str, losses: dict[int, float], step: int | None = None) -> RunDirectory:
    """A run directory with no more in it than a study reads."""
    path.mkdir(parents=True)
    run = RunDirectory(path)
    run.config.write_text("{}")
    rows = [MetricsRow(step=step, split="val", loss=loss) for step, loss in losses.items()]
    run.metrics.write_bytes(b"".join(map(encode_row, rows)))
    summary = Summary(status=status, step=step or max(losses), best_val_loss=min(losses.values()))
    write_summary(run.summary, summary)
    return run


def test_trials_are_shared_between_living_sweepers_and_inherited_from_dead_ones(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    with owner(tmp_path) as one:
        with owner(tmp_path) as other:
            assert take(first, one, 2) == [0, 1]
            assert take(second, other, 2) == [2, 3]
            assert others_at_work(first, one)
            second.mark(2, FAILED, "no room on the disk")
            second.mark(3, FAILED, "no room on the disk")
            assert not others_at_work(first, one), "two sweepers with a failure each would wait for each other"
            point = point_of(second, 2)
        # The other sweeper has ended, and its trials are still open.
        assert not others_at_work(first, one)
        assert take(first, one, 9) == [2, 3], "what was left goes first and alone"
        assert point_of(first, 2) == point
        assert take(first, one, 9) == [4, 5]
        assert take(first, one, 9) == [], "n_trials is for all together"


def test_an_impossible_trial_does_not_take_the_place_of_another(tmp_path: Path) -> None:
    study = opened(tmp_path, n_trials=3)
    with owner(tmp_path) as me:
        assert take(study, me, 2) == [0, 1]
        reject(study, 0, "3 heads do not divide 8")
        reject(study, 1, "3 heads do not divide 16")
        assert take(study, me, 9) == [2, 3, 4]
        assert take(study, me, 9) == []
        assert not others_at_work(study, me)
    assert n_impossible(study.trials()) == 2
    assert [trial.state for trial in study.trials()[:3]] == [TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING]


def test_impossible_points_of_a_grid_are_not_replaced(tmp_path: Path) -> None:
    space = (Choice("model", ("gpt", "gpt2", "bare")),)
    study = open_study(tmp_path, "study", OptunaConfig(sampler="grid", n_trials=2), space, max_steps=9)
    with owner(tmp_path) as me:
        assert take(study, me, 1) == [0]
        reject(study, 0, "no")
        assert take(study, me, 9) == [1, 2]
        reject(study, 1, "no")
        assert take(study, me, 9) == []


def test_a_killed_sweeper_holds_neither_its_trials_nor_the_journal(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from tests.sweeps.test_study import opened
from nanolm.sweeps.optuna.study import KernelLock, JOURNAL, owner, take
folder = Path({str(tmp_path)!r})
with owner(folder) as me:
    take(opened(folder), me, 2)
    KernelLock(folder / JOURNAL).acquire()
    with (folder / JOURNAL).open("ab") as file:
        file.write(b'{{"op_code": 6, "worker')
    print("ready", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    began = time.monotonic()
    study = opened(tmp_path)
    with owner(tmp_path) as me:
        assert take(study, me, 9) == [0, 1]
        assert take(study, me, 1) == [2]
    assert time.monotonic() - began < 5
    assert all(json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines())
    assert not list(tmp_path.glob(".sweeper-*")), "the files of sweepers that ended are taken away"


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b""), (b"{}\n", b"{}\n"), (b"{}\n{}", b"{}\n"), (b"{", b""), (b"{}\n{}\n[", b"{}\n{}\n")],
)
def test_a_line_that_a_kill_cut_short_is_taken_off(before: bytes, after: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(before)
    drop_torn_line(path)
    assert path.read_bytes() == after


def test_a_damaged_journal_is_said(tmp_path: Path) -> None:
    opened(tmp_path)
    path = tmp_path / JOURNAL
    path.write_bytes(b"{garbage\n" + path.read_bytes())
    with pytest.raises(RunError, match=f"(?s)the study's journal is damaged.*{JOURNAL}.*move it away"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "content", ["my own notes", "my own notes\n", '{"op_code":0}\n{"a": 1}\n', '{"op_code":0}\nnotes']
)
def test_a_file_that_is_no_journal_is_not_written_to(content: str, tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_text(content)
    with pytest.raises(RunError, match="the study's journal is damaged"):
        opened(tmp_path)
    assert path.read_text() == content


def test_a_journal_cut_short_in_its_first_line_begins_again(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text('{"op_co')
    assert opened(tmp_path).trials() == []


def test_no_study_is_begun_in_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(RunError, match="is a run, and the runs of a sweep"):
        opened(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_loss_is_reported_once_and_decided_upon_once(tmp_path: Path) -> None:
    study = opened(tmp_path)
    with owner(tmp_path) as me:
        assert take(study, me, 3) == [0, 1, 2]
    run = RunDirectory(tmp_path / "run")
    assert not watch(study, 0, run)(10, 3.0), "the first one is the best so far"
    assert watch(study, 1, run)(10, 3.5)
    report(study, 2, {10: 2.0})
    # Cut off behind the report and trained again: it is what it was, though trial 2 would now be in the way.
    again = opened(tmp_path)
    assert not watch(again, 0, run)(10, 99.0)
    assert again.trials()[0].intermediate_values == {10: 3.0}
    assert watch(again, 1, run)(10, 99.0)
    assert watch(again, 0, run)(30, 9.0) is False, "none was at 30 before"
    assert watch(again, 2, run)(30, 9.5)
    assert watch(again, 0, run)(90, 99.0) is False, "a trial at its end is not given up"


def test_a_kill_between_the_report_and_the_decision_changes_nothing(tmp_path: Path) -> None:
    study = opened(tmp_path)
    with owner(tmp_path) as me:
        take(study, me, 3)
    run = RunDirectory(tmp_path / "run")
    report(study, 0, {10: 3.0})
    report(study, 1, {10: 3.5})
    assert not watch(study, 0, run)(10, 3.0)
    assert watch(study, 1, run)(10, 3.5)


def test_a_run_that_another_study_began_brings_its_losses(tmp_path: Path) -> None:
    study = opened(tmp_path)
    with owner(tmp_path) as me:
        take(study, me, 1)
    run = run_with(tmp_path / "run", "interrupted", {10: 3.0, 20: 2.5, 30: 2.4})
    watch(study, 0, run)(40, 2.3)
    assert study.trials()[0].intermediate_values == {10: 3.0, 20: 2.5, 30: 2.4, 40: 2.3}


def settled(study: OpenStudy, number: int, run: RunDirectory) -> bool:
    return settle(study, number, run, read_run(run, study.max_steps))


def test_a_result_in_the_folder_ends_the_trial(tmp_path: Path) -> None:
    study = opened(tmp_path)
    with owner(tmp_path) as me:
        take(study, me, 6)
    assert settled(study, 0, run_with(tmp_path / "a", "completed", {30: 2.0, 60: 1.5, 90: 1.7}))
    assert settled(study, 1, run_with(tmp_path / "b", "pruned", {10: 4.0}))
    assert settled(study, 2, run_with(tmp_path / "c", "diverged", {10: 4.0}))
    assert not settled(study, 3, run_with(tmp_path / "d", "interrupted", {10: 3.0}))
    assert not settled(study, 4, RunDirectory(tmp_path / "e"))
    assert not settled(study, 5, run_with(tmp_path / "f", "completed", {30: 2.0})), "30 steps of 90"
    trials = study.trials()
    ended = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    assert [trial.state for trial in trials] == [*ended, *[TrialState.RUNNING] * 3]
    assert [trial.value for trial in trials[:3]] == [1.5, 4.0, float("inf")]
    assert trials[0].intermediate_values == {30: 2.0, 60: 1.5, 90: 1.7}
    assert opened(tmp_path).study.best_trial.number == 0


def test_without_a_pruner_a_pruned_run_is_no_result(tmp_path: Path) -> None:
    study = opened(tmp_path, pruner="none")
    with owner(tmp_path) as me:
        take(study, me, 1)
    assert not settled(study, 0, run_with(tmp_path / "a", "pruned", {10: 2.0}))


def test_a_failure_is_kept_with_the_trial(tmp_path: Path) -> None:
    study = opened(tmp_path)
    with owner(tmp_path) as me:
        take(study, me, 1)
    run = run_with(tmp_path / "a", "running", {10: 2.0})
    run.error.write_text("no memory is left\n")
    assert not settled(study, 0, run)
    assert study.trials()[0].user_attrs[FAILED] == "no memory is left"


def test_a_job_finds_its_trial_by_the_folder_of_its_run(tmp_path: Path) -> None:
    study = opened(tmp_path)
    with owner(tmp_path) as me:
        take(study, me, 2)
    study.mark(1, FOLDER, "mine")
    # As it goes to another process.
    watcher = pickle.loads(pickle.dumps(Watch(str(tmp_path), "study", study.settings, SPACE, 90)))  # noqa: S301
    should_prune = watcher(RunDirectory(tmp_path / "mine"))
    assert should_prune is not None
    should_prune(10, 3.0)
    assert study.trials()[1].intermediate_values == {10: 3.0}
    assert watcher(RunDirectory(tmp_path / "other")) is None
    study.study.tell(1, 3.0)
    assert watcher(RunDirectory(tmp_path / "mine")) is None


def test_a_failed_trial_is_tried_again_by_the_next_sweeper_alone(tmp_path: Path) -> None:
    study = opened(tmp_path, n_trials=2)
    with owner(tmp_path) as me:
        take(study, me, 1)
        study.mark(0, FAILED, "no room on the disk")
        assert take(study, me, 9) == [1]
        study.study.tell(1, 2.0)
        assert take(study, me, 9) == []
    with owner(tmp_path) as me:
        assert take(study, me, 9) == [0]
        assert not study.trials()[0].user_attrs[FAILED]


def test_the_name_is_of_all_that_decides_the_trials() -> None:
    settings = OptunaConfig(pruner="asha")
    name = name_of(settings, SPACE, {"seed": 1})
    assert name.startswith("tpe_asha_")
    assert name_of(OptunaConfig(pruner="asha", n_trials=99, max_batch_size=4), SPACE, {"seed": 1}) == name
    assert name_of(settings, SPACE[::-1], {"seed": 1}) == name
    others = [
        name_of(settings, SPACE, {"seed": 2}),
        name_of(settings, SPACE[:1], {"seed": 1}),
        name_of(OptunaConfig(pruner="asha", seed=1), SPACE, {"seed": 1}),
        name_of(OptunaConfig(pruner="asha", reduction_factor=5), SPACE, {"seed": 1}),
        name_of(OptunaConfig(sampler="random", pruner="asha"), SPACE, {"seed": 1}),
    ]
    assert len({name, *others}) == 6


def test_a_journal_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / JOURNAL).symlink_to("../victim")
    with pytest.raises(RunError, match=rf"{JOURNAL} is a symbolic link"):
        opened(tmp_path / "sweep")
    assert not (tmp_path / "victim").exists()
