"""A run directory whose files are missing, cut short, or of another run: refused, or continued to the same result."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nanolm.config.run import Config
from nanolm.config.yaml_io import load_yaml
from nanolm.errors import NanolmError, RunError, SettingsError
from nanolm.inference.load import load_run
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import update_summary, write_summary
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.fork import Parent
from nanolm.training.checkpoints.resume_checks import log_problem, parent_notes
from nanolm.training.trainer import train
from tests.helpers import final_state, is_same_state, sigterm_at_step, small_config, untimed_rows

LINE = (
    "model=bigram",
    "trainer.eval_every=2",
    "trainer.save_every=2",
    "trainer.log_every=1",
    "trainer.sample_tokens=3",
    "trainer.max_steps=6",
)
STOPPED_AT = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs: whole, the same stopped at step 2, that one stopped at step 4 again, and one with other settings."""
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "small.txt"
    text.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}, which is known.\n" for n in range(200)))
    (folder / "empty").mkdir()
    for name, begins_as, steps, overrides in (
        ("whole", "empty", None, ()),
        ("older", "empty", 2, ()),
        ("parted", "older", 2, ()),
        ("other", "empty", None, ("optimizer.lr=0.1", "seed=7", "tokenizer=byte")),
    ):
        run = RunDirectory(folder / name)
        shutil.copytree(folder / begins_as, run.path)
        with run.claim(), sigterm_at_step(steps or 1000):
            train(small_config(text, *LINE, *overrides), run, quiet=True)
    return folder


def copy_of(runs: Path, name: str, folder: Path) -> RunDirectory:
    shutil.copytree(runs / name, folder / name)
    return RunDirectory(folder / name)


def content_of(run: RunDirectory) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path != run.lock}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def cut_to(path: Path, length: int) -> None:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    for file in files:
        file.write_bytes(file.read_bytes()[: -file.stat().st_size // 2 if length else 0])


def replace_by(path: Path, source: Path) -> None:
    remove(path)
    copy = shutil.copytree if source.is_dir() else shutil.copy2
    copy(source, path)


DAMAGES: dict[str, Callable[[Path, Path, str], None]] = {
    "missing": lambda path, runs, name: remove(path),
    "empty": lambda path, runs, name: cut_to(path, 0),
    "cut short": lambda path, runs, name: cut_to(path, 1),
    "older": lambda path, runs, name: replace_by(path, runs / "older" / name),
    "of another run": lambda path, runs, name: replace_by(path, runs / "other" / name),
}
FILES = (
    "config.yaml",
    "metrics.jsonl",
    "samples.jsonl",
    "summary.json",
    "tokenizer.json",
    "train.log",
    ".lock",
    "checkpoints",
    f"checkpoints/step-{STOPPED_AT:08d}",
)

# What does not stop training; all else is refused.
RESUMES = {
    ("missing", "samples.jsonl"), ("empty", "samples.jsonl"), ("cut short", "samples.jsonl"),
    ("older", "samples.jsonl"),
    ("of another run", "samples.jsonl"), ("missing", "summary.json"), ("older", "summary.json"),
    ("older", "config.yaml"), ("older", "tokenizer.json"), ("older", "checkpoints"),
    ("missing", f"checkpoints/step-{STOPPED_AT:08d}"), ("empty", f"checkpoints/step-{STOPPED_AT:08d}"),
    ("cut short", f"checkpoints/step-{STOPPED_AT:08d}"),
    ("older", f"checkpoints/step-{STOPPED_AT:08d}"),
    *((damage, name) for damage in DAMAGES for name in ("train.log", ".lock")),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_run_is_refused_or_resumes_exactly(damage: str, name: str, runs: Path, tmp_path: Path) -> None:
    source = name.replace("step-00000004", "step-00000002") if damage == "older" else name
    run = copy_of(runs, "parted", tmp_path)
    DAMAGES[damage](run.path / name, runs, source)
    before = content_of(run)
    if (damage, name) not in RESUMES:
        with pytest.raises(NanolmError) as caught:
            train(load_yaml(run.require().config), run, quiet=True)
        assert (caught.value.exit_status, bool(caught.value.where)) == (2, True)
        assert content_of(run) == before
        return
    train(load_yaml(run.require().config), run, quiet=True)
    whole = RunDirectory(runs / "whole")
    assert untimed_rows(run) == untimed_rows(whole)
    assert is_same_state(final_state(run)[0], final_state(whole)[0])
    assert b"\0" not in run.metrics.read_bytes() + run.samples.read_bytes()


@pytest.mark.parametrize("damage", ["missing", "cut short", "of another run"])
def test_mismatched_metrics_are_reported_and_kept(damage: str, runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs, "parted", tmp_path)
    DAMAGES[damage](run.metrics, runs, "metrics.jsonl")
    reason = {
        "missing": "is missing; it had",
        "cut short": r"has \d+ bytes, and had",
        "of another run": r"(is not the file of this run|has \d+ bytes)",
    }[damage]
    with pytest.raises(RunError, match=rf"metrics\.jsonl {reason}[\s\S]*fork=true"):
        train(load_yaml(run.config), run)


def test_hint_for_lost_metrics_names_a_working_fork(runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs, "whole", tmp_path)
    run.metrics.unlink()
    config = load_yaml(run.config)
    config.trainer.max_steps = 8
    with pytest.raises(RunError) as caught:
        train(config, run)
    assert caught.value.hint.endswith("fork=true trainer.max_steps=8")


@pytest.mark.parametrize("samples", ['{"step": 2, "text": "abc"}\n', "my own text\n"])
def test_samples_alone_prove_that_a_run_was_trained(samples: str, runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs, "parted", tmp_path)
    for path in (run.checkpoints, run.summary, run.metrics, run.log):
        remove(path)
    run.samples.write_text(samples)
    before = content_of(run)
    with pytest.raises(RunError, match="the run has no checkpoint left"):
        train(load_yaml(run.config), run)
    assert content_of(run) == before


def test_altered_number_in_metrics_is_found(runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs, "parted", tmp_path)
    content = bytearray(run.metrics.read_bytes())
    at = content.index(b'"loss": ') + len(b'"loss": ')
    content[at] = ord("1") if content[at] != ord("1") else ord("2")
    run.metrics.write_bytes(content)
    with pytest.raises(RunError, match=r"metrics\.jsonl is not the file of this run"):
        train(load_yaml(run.config), run)


@pytest.mark.parametrize("also", [(), ("summary.json",), ("metrics.jsonl", "samples.jsonl")])
def test_run_without_its_checkpoints_is_not_restarted(also: tuple[str, ...], runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs, "parted", tmp_path)
    for name in ("checkpoints", *also):
        remove(run.path / name)
    before = content_of(run)
    with pytest.raises(RunError, match=r"no checkpoint left, although 4 steps were done[\s\S]*from a copy"):
        train(load_yaml(run.config), run)
    assert content_of(run) == before


def test_killed_run_without_checkpoints_uses_its_summary(runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs, "parted", tmp_path)
    shutil.rmtree(run.checkpoints)
    # As a kill leaves them: no results yet, and the first checkpoint recorded or not.
    summary = dataclasses.replace(run.read_summary(), step=None, status="running")
    run.metrics.write_bytes(b"".join(run.metrics.read_bytes().splitlines(keepends=True)[:1]))
    write_summary(run.summary, summary)
    assert summary.has_checkpoint is True
    with pytest.raises(RunError, match="no checkpoint left"):
        train(load_yaml(run.config), run)
    update_summary(run.summary, has_checkpoint=False)
    train(load_yaml(run.config), run, quiet=True)
    assert "before its first checkpoint: it restarts at step 0" in run.log.read_text()
    assert untimed_rows(run) == untimed_rows(RunDirectory(runs / "whole"))


def edit(path: Path, old: str, new: str) -> Config:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return load_yaml(path)


def test_edited_config_is_reported_with_both_values(runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs, "parted", tmp_path)
    lr = load_yaml(run.config).optimizer.lr
    config = edit(run.config, f"  lr: {lr}\n", "  lr: 0.5\n")
    with pytest.raises(RunError, match=rf"config\.yaml has changed .*: optimizer\.lr: {lr} -> 0\.5\n[\s\S]*fork=true"):
        train(config, run)
    assert load_run(str(run.path), device="cpu").step == STOPPED_AT, "the optimizer is no part of the model"
    edit(run.config, "  context_length: 16\n", "  context_length: 8\n")
    with pytest.raises(RunError, match=r"size\.context_length: 16 -> 8\n"):
        load_run(str(run.path), device="cpu")


def test_permitted_change_is_logged(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of(runs, "parted", tmp_path)
    train(edit(run.config, "  max_steps: 6\n", "  max_steps: 5\n"), run)
    said = capsys.readouterr().err
    assert "resumes from step 4 with trainer.max_steps: 6 -> 5" in said
    assert "the learning rate changes at step 4 from " in said


def test_truncated_config_is_refused(runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs, "parted", tmp_path)
    edit(run.config, "  max_steps: 6\n", "")
    with pytest.raises(RunError, match=r"config\.yaml is truncated: trainer\.max_steps is missing"):
        train(load_yaml(run.config), run)


def test_without_config_only_the_same_settings_resume(runs: Path, tmp_path: Path) -> None:
    text = runs / "small.txt"
    run = copy_of(runs, "parted", tmp_path)
    run.config.unlink()
    before = content_of(run)
    for overrides, said in (
        (("optimizer.lr=0.5", "seed=3"), r"optimizer\.lr: \S+ -> 0\.5; seed: 1337 -> 3"),
        (("optimizer=sgd",), r"optimizer\.name: muon -> sgd"),
        (("trainer.batch_size=8",), r"trainer\.batch_size: 4 -> 8"),
    ):
        with pytest.raises(RunError, match=rf"trained with other settings: {said}[\s\S]*from a copy of the run"):
            train(small_config(text, *LINE, *overrides), run)
        assert content_of(run) == before
    with pytest.raises(RunError, match=r"config\.yaml is missing from [\s\S]*resume=auto"):
        run.require()
    train(small_config(text, *LINE), run, quiet=True)
    assert untimed_rows(run) == untimed_rows(RunDirectory(runs / "whole"))
    assert run.config.exists()


def test_log_sizes_are_right_after_a_truncation(runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs, "parted", tmp_path)
    with run.samples.open("ab") as file:
        file.write(b"written after the checkpoint")
    config = load_yaml(run.config)
    config.trainer.sample_tokens = 0
    train(config, run, quiet=True)
    found, _ = checkpoint.newest(run.checkpoints)
    assert found is not None
    assert found.manifest["logs"]["samples.jsonl"]["bytes"] == run.samples.stat().st_size


def test_run_does_not_overwrite_its_dataset(runs: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    text = run.path / "train.log"
    text.write_text("2026-01-01 00:00:00 a line of a log\n" * 100)
    before = content_of(run)
    with pytest.raises(SettingsError, match=r"dataset\.path=.* is a file that the run directory .* would overwrite"):
        train(small_config(text, *LINE), run)
    assert content_of(run) == before


def test_killed_start_can_be_repeated(runs: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    summary = RunDirectory(runs / "whole").read_summary()
    write_summary(run.summary, dataclasses.replace(summary, step=None, has_checkpoint=None, status="running"))
    shutil.copy(runs / "whole" / "tokenizer.json", run.tokenizer)
    (run.path / ".config.yaml.99.tmp").write_text("dataset:")
    train(small_config(runs / "small.txt", *LINE), run, quiet=True)
    assert untimed_rows(run) == untimed_rows(RunDirectory(runs / "whole"))


ROW_CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "altered": lambda rows: [rows[0].replace(b'"step": ', b'"step":  ', 1), *rows[1:]],
    "lost": lambda rows: rows[1:],
    "repeated": lambda rows: [rows[0], *rows],
    "reordered": lambda rows: [rows[1], rows[0], *rows[2:]],
    "emptied": lambda rows: [],
}


@pytest.mark.parametrize("change", ROW_CHANGES)
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_changed_rows_before_the_checkpoint_are_found(name: str, change: str, runs: Path, tmp_path: Path) -> None:
    found, _ = checkpoint.newest(runs / "parted" / "checkpoints")
    assert found is not None
    path = tmp_path / name
    shutil.copy(runs / "parted" / name, path)
    assert log_problem(path, found.manifest["logs"][name]) is None
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(ROW_CHANGES[change](rows)))
    assert log_problem(path, found.manifest["logs"][name]) is not None


def test_rows_after_the_checkpoint_are_cut_off(runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs, "parted", tmp_path)
    for path in (run.metrics, run.samples):
        with path.open("ab") as file:
            file.write(b'{"step": 5, "split": "train", "text": "x"}\n{"cut sh')
    train(load_yaml(run.config), run, quiet=True)
    assert untimed_rows(run) == untimed_rows(RunDirectory(runs / "whole"))
    assert b"cut sh" not in run.samples.read_bytes()


def test_fork_reports_changed_rows_of_its_parent(runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs, "parted", tmp_path)
    config = load_yaml(run.config)
    found, _ = checkpoint.newest(run.checkpoints)
    assert found is not None
    assert parent_notes(Parent(run, config, found)) == []
    run.metrics.write_bytes(run.metrics.read_bytes().replace(b'"step": 1', b'"step": 2', 1))
    run.samples.unlink()
    changed, missing = parent_notes(Parent(run, config, found))
    assert "metrics.jsonl of the parent is not the file of this run" in changed
    assert "samples.jsonl of the parent is missing" in missing
