import json
from pathlib import Path

import pytest

from nanolm.errors import RunError, SettingsError
from nanolm.files import replacing
from nanolm.runs.directory import RunDirectory
from nanolm.runs.occupancy import (
    is_without_config,
    require_inputs_outside,
    require_no_run,
    require_nothing_overwritten,
    require_outside_runs,
    require_startable,
)
from tests.helpers import make_config

SUMMARY = {"status": "running", "identity": "a" * 64, "has_checkpoint": False}


def made(folder: Path, files: dict[str, str]) -> RunDirectory:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return RunDirectory(folder)


def test_run_inside_a_run_is_refused(tmp_path: Path) -> None:
    run = made(tmp_path / "run", {"config.yaml": "seed: 1", "summary.json": "{}", "checkpoints/step-1/a": ""})
    (tmp_path / "link").symlink_to(run.checkpoints)
    for path in (run.checkpoints / "new", tmp_path / "link" / "new", run.wandb):
        with pytest.raises(RunError, match="is a part of the run"):
            require_startable(RunDirectory(path))
    with pytest.raises(RunError, match="is a part of the run"):
        require_outside_runs(run.metrics, "")
    require_startable(RunDirectory(run.path / "new"))
    require_outside_runs(run.path / "report.html", "")
    made(tmp_path / "project", {"config.yaml": "a: 1", ".lock": ""})
    require_startable(RunDirectory(tmp_path / "project" / "checkpoints" / "new"))


def test_run_as_sweep_directory_is_refused(tmp_path: Path) -> None:
    run = made(tmp_path / "run", {"config.yaml": "seed: 1", "summary.json": "{}", "wandb/a": ""})
    for path in (run.path, run.wandb):
        with pytest.raises(RunError, match="the runs of a sweep would not be found"):
            require_no_run(path)
    require_no_run(run.path / "sweep")
    require_no_run(made(tmp_path / "project", {"config.yaml": "a: 1", ".lock": ""}).path)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {".lock": "process 9 on host since then (nanolm train)"},
        {
            ".lock": "",
            "tokenizer.json": '{"name": "char", "characters": []}',
            ".nanolm.0123456789abcdef.tmp": "{",
            ".dry-run-ab_1/x": "",
        },
        {"summary.json": json.dumps(SUMMARY), "train.log": "2026-11-25 20:00:00 Traceback\n", "metrics.jsonl": ""},
        {".hydra/config.yaml": "seed: 1", ".hydra/hydra.yaml": "", ".hydra/overrides.yaml": ""},
        {"config.yaml": "seed: 1", "notes.txt": "mine"},
    ],
)
def test_empty_folders_runs_and_killed_starts_are_accepted(files: dict[str, str], tmp_path: Path) -> None:
    require_startable(made(tmp_path / "a", files))


def test_temporary_file_of_a_killed_write_is_accepted(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    unfinished = replacing(run.summary)
    unfinished.__enter__().write_text("{")
    assert len(list(run.path.iterdir())) == 1
    require_startable(run)


@pytest.mark.parametrize(
    "name",
    [
        "book.txt",
        "samples.jsonl",
        "metrics.jsonl",
        "train.log",
        "summary.json",
        "tokenizer.json",
        "error.txt",
        ".lock",
        "profile.json",
        "wandb/run-1",
        "checkpoints/notes.txt",
        ".hydra/mine.yaml",
        ".git/config",
    ],
)
def test_foreign_files_are_named(name: str, tmp_path: Path) -> None:
    run = made(tmp_path / "a", {name: '{"text": "the quick brown fox"}\n'})
    with pytest.raises(RunError, match=f"neither empty nor a run: it holds {name.split('/')[0]}\n"):
        require_startable(run)


def test_many_foreign_files_are_counted(tmp_path: Path) -> None:
    run = made(tmp_path, {f"{n}.txt": "" for n in range(9)})
    with pytest.raises(RunError, match=r"it holds 0\.txt, 1\.txt, 2\.txt, 3\.txt, 4\.txt and 4 more"):
        require_startable(run)
    require_startable(made(tmp_path / "job", {"error.txt": "no GPU"}), also=frozenset({"error.txt"}))


def test_other_files_next_to_a_run_are_accepted(tmp_path: Path) -> None:
    run = made(tmp_path, {"book.txt": "mine", ".lock": "process 9 on host"})
    require_nothing_overwritten(run)
    run.samples.write_text("mine")
    with pytest.raises(RunError, match=r"training would overwrite its samples\.jsonl"):
        require_nothing_overwritten(run)


def test_link_is_a_foreign_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "samples.jsonl").symlink_to(tmp_path / "empty")
    with pytest.raises(RunError, match=r"it holds samples\.jsonl"):
        require_startable(RunDirectory(tmp_path / "a"))


def test_run_is_recognised_without_its_config(tmp_path: Path) -> None:
    for number, files in enumerate(
        ({"checkpoints/step-00000004/manifest.json": ""}, {"summary.json": json.dumps({**SUMMARY, "step": 4})})
    ):
        run = made(tmp_path / str(number), {**files, "metrics.jsonl": "{}\n"})
        assert is_without_config(run)
        require_startable(run)
    assert not is_without_config(made(tmp_path / "b", {"summary.json": json.dumps(SUMMARY)}))


def test_settings_that_read_files_of_the_run_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    for path in ("a/samples.jsonl", str(tmp_path / "a" / "wandb" / "x.txt"), "a/../a/train.log"):
        with pytest.raises(SettingsError, match=r"dataset\.path=.*would overwrite"):
            require_inputs_outside(make_config("dataset=text", f"dataset.path={path}"), run)
    (tmp_path / "loop").symlink_to("loop")
    for path in ("a/book.txt", "loop"):
        require_inputs_outside(make_config("dataset=text", f"dataset.path={path}"), run)
