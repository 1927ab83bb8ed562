"""Which folder a command line may use, and what it may resume."""

import shutil
from pathlib import Path

import pytest

from nanolm.cli import train as train_verb
from nanolm.compose import Line, compose_line
from nanolm.errors import RunError, SettingsError
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import update_summary
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.trainer import train
from tests.helpers import Nanolm, small_config, untimed_rows

LINE = (
    "model=bigram",
    "trainer.max_steps=4",
    "trainer.eval_every=2",
    "trainer.save_every=2",
    "trainer.sample_tokens=0",
)


def fork_task(line: Line) -> train_verb.Task:
    assert line.launch.resumed_path is not None
    return train_verb._fork(line.launch.resumed_path, line)


@pytest.fixture
def run(small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory("R")
    run.path.mkdir()
    train(small_config(small_text, *LINE), run, quiet=True)
    return run


@pytest.mark.parametrize(
    "word", ["hydra.run.dir=", "hydra.sweep.dir=", "resume=", "hydra.run.dir=' '", "hydra.run.dir=null", "resume=null"]
)
def test_an_empty_folder_setting_is_refused(word: str) -> None:
    key = word.split("=")[0]
    with pytest.raises(SettingsError, match=rf"{key} is empty\n[\s\S]*as in {key}=outputs/"):
        compose_line([word], multirun=key == "hydra.sweep.dir")


def test_a_given_folder_with_foreign_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "here" / "book.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "here" / "below")
    for folder in ("..", str(tmp_path / "here"), "../../here", str(tmp_path)):
        with pytest.raises(RunError, match="neither empty nor a run: it holds"):
            train_verb._run_directory(compose_line([f"hydra.run.dir={folder}"]))
    assert train_verb._run_directory(compose_line(["hydra.run.dir=new"])) == Path("new")


def test_another_folder_for_a_resumed_run_is_refused(run: RunDirectory) -> None:
    with pytest.raises(SettingsError, match=r"resume=R goes on in its own folder, and hydra\.run\.dir is other"):
        train_verb._run_directory(compose_line(["resume=R", "hydra.run.dir=other"]))
    same = compose_line(["resume=R", f"hydra.run.dir={run.path.absolute()}"])
    assert train_verb._run_directory(same) == Path("R")


def test_a_checkpoint_to_resume_points_at_its_run(run: RunDirectory) -> None:
    step = "R/checkpoints/step-00000004"
    for path, what, fork in (
        (step, "one checkpoint", True),
        (f"{step}/", "one checkpoint", True),
        ("R/checkpoints/step-4", "one checkpoint", True),
        (str(Path(step).absolute()), "one checkpoint", True),
        (f"{step}/model.safetensors", "a part", False),
        ("R/checkpoints", "a part", False),
        ("R/config.yaml", "a part", False),
    ):
        with pytest.raises(RunError, match=f"is {what} of the run R\n") as caught:
            train_verb._run_directory(compose_line([f"resume={path}"]))
        assert "resume=R goes on from the newest checkpoint" in caught.value.hint
        hint = "fork=true trainer.max_steps=8 begins a new run from this one"
        assert (hint in caught.value.hint) is fork
    for step_3 in ("R/checkpoints/step-00000003", "R/checkpoints/step-new"):
        with pytest.raises(RunError, match=f"the run R has no checkpoint {Path(step_3).name}") as caught:
            train_verb._run_directory(compose_line([f"resume={step_3}"]))
        assert caught.value.hint == "nanolm train resume=R goes on from the newest checkpoint"
    line = compose_line([f"resume={step}", "fork=true", "trainer.max_steps=8"])
    assert fork_task(line).parent is not None
    line = compose_line(["resume=R/checkpoints/step-3", "fork=true", "trainer.max_steps=8"])
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint of step 3[\s\S]*existing checkpoints: 2, 4"):
        fork_task(line)


def test_a_fork_of_an_edited_run_is_refused(run: RunDirectory) -> None:
    run.config.write_text(run.config.read_text().replace("seed: 1337", "seed: 7"))
    line = compose_line(["resume=R", "fork=true", "trainer.max_steps=8"])
    with pytest.raises(RunError, match=r"seed: 1337 -> 7\n"):
        fork_task(line)
    line = compose_line(["resume=R"])
    with pytest.raises(RunError, match=r"seed: 1337 -> 7\n"):
        train_verb._task(run, line)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(RunError, match="another hash than summary"):
        train_verb._task(run, line)


def test_a_fork_of_a_run_that_lost_its_checkpoints_is_refused(run: RunDirectory) -> None:
    line = compose_line(["resume=R", "fork=true", "trainer.max_steps=8"])
    shutil.rmtree(run.checkpoints)
    with pytest.raises(RunError, match=r"no checkpoint to begin from[\s\S]*take the folder checkpoints from a copy"):
        fork_task(line)


def test_a_fork_without_a_checkpoint_begins_at_its_parent_again(run: RunDirectory) -> None:
    line = compose_line(["resume=R", "fork=true", "trainer.max_steps=8", "optimizer.lr=0.1"])
    fork = RunDirectory("F")
    fork.path.mkdir()
    task = fork_task(line)
    train(task.config, fork, parent=task.parent, quiet=True)
    expected = untimed_rows(fork)
    # As a kill before the first save leaves it.
    update_summary(fork.summary, status="running", has_checkpoint=False, step=None)
    shutil.rmtree(fork.checkpoints)
    fork.metrics.write_bytes(b"")
    line = compose_line(["resume=F"])
    again = train_verb._task(fork, line)
    assert again is not None
    assert again.parent is not None
    train(again.config, fork, parent=again.parent, quiet=True)
    assert untimed_rows(fork) == expected


def test_choices_of_a_run_without_a_summary_come_from_its_config(run: RunDirectory) -> None:
    run.summary.unlink()
    line = compose_line(["resume=R", "trainer.max_steps=8"])
    task = train_verb._task(run, line)
    assert task is not None
    assert train_verb._choices(task, run, line)["model"] == "bigram"


def test_no_file_that_is_not_ours_is_overwritten(nanolm: Nanolm, small_text: Path) -> None:
    here = nanolm.folder
    (here / "C").mkdir()
    shutil.copy(small_text, here / "C" / "samples.jsonl")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    line = ("train", "logger=none", "dataset=text", "dataset.path=C/samples.jsonl", *LINE)
    for folder, said in (("C", r"it holds samples.jsonl"), (".", "it holds C"), ("", "hydra.run.dir is empty")):
        done = nanolm(*line, f"hydra.run.dir={folder}")
        assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
        assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    # A job of a sweep whose folder holds what is not its own fails, and leaves it.
    sweep = ("-m", "hydra.sweep.dir=S", "seed=1,2")
    assert nanolm(*line, *sweep).returncode == 0
    job = next(path for path in (here / "S").iterdir() if path.is_dir())
    shutil.rmtree(job)
    job.mkdir()
    (job / "metrics.jsonl").write_text("mine")
    done = nanolm(*line, *sweep)
    assert (done.returncode, "neither empty nor a run: it holds metrics.jsonl" in done.stderr) == (2, True), done.stderr
    assert [path.name for path in job.iterdir()] == ["metrics.jsonl"]
    # A run that lost its settings goes on only with the same.
    next(path for path in (here / "S").iterdir() if path.is_dir() and path != job).rename(here / "R")
    (here / "R" / "config.yaml").unlink()
    for words, said in (
        (("seed=3", "resume=auto"), "seed: "),
        (("optimizer=sgd", "resume=auto"), "optimizer.name: adamw -> sgd"),
        (("seed=2",), "this folder holds a run already, whose config.yaml is missing"),
    ):
        done = nanolm(*line, "hydra.run.dir=R", "trainer.max_steps=6", *words)
        assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
