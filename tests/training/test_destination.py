from pathlib import Path

import pytest

from nanolm.compose import compose_command
from nanolm.errors import RunError, SettingsError
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.destination import choose_directory, require_run
from nanolm.training.starting_point import forked
from nanolm.training.trainer import train
from tests.helpers import small_config

LINE = (
    "model=bigram",
    "trainer.max_steps=4",
    "trainer.eval_every=2",
    "trainer.save_every=2",
    "trainer.sample_tokens=0",
)


@pytest.fixture
def run(small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory("R")
    run.path.mkdir()
    train(small_config(small_text, *LINE), run, quiet=True)
    return run


def test_directory_with_foreign_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "here" / "book.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "here" / "below")
    for folder in ("..", str(tmp_path / "here"), "../../here", str(tmp_path)):
        with pytest.raises(RunError, match="neither empty nor a run: it holds"):
            choose_directory(compose_command([f"hydra.run.dir={folder}"]))
    assert choose_directory(compose_command(["hydra.run.dir=new"])) == Path("new")


def test_other_directory_for_a_resumed_run_is_refused(run: RunDirectory) -> None:
    with pytest.raises(SettingsError, match=r"resume=R continues in its own directory, but hydra\.run\.dir is other"):
        choose_directory(compose_command(["resume=R", "hydra.run.dir=other"]))
    same = compose_command(["resume=R", f"hydra.run.dir={run.path.absolute()}"])
    assert choose_directory(same) == Path("R")


def test_checkpoint_to_resume_names_its_run(run: RunDirectory) -> None:
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
            require_run(Path(path), is_fork=False)
        assert "resume=R resumes from the latest checkpoint" in caught.value.hint
        hint = "fork=true trainer.max_steps=8 starts a new run from this one"
        assert (hint in caught.value.hint) is fork
    for step_3 in ("R/checkpoints/step-00000003", "R/checkpoints/step-new"):
        with pytest.raises(RunError, match=f"the run R has no checkpoint {Path(step_3).name}") as caught:
            require_run(Path(step_3), is_fork=False)
        assert caught.value.hint == "nanolm train resume=R resumes from the latest checkpoint"
    line = compose_command([f"resume={step}", "fork=true", "trainer.max_steps=8"])
    assert forked(Path(step), line).parent is not None
    line = compose_command(["resume=R/checkpoints/step-3", "fork=true", "trainer.max_steps=8"])
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint of step 3[\s\S]*existing checkpoints: 2, 4"):
        forked(Path("R/checkpoints/step-3"), line)
