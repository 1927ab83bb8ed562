import shutil
from pathlib import Path

import pytest

from nanolm.compose import compose_command
from nanolm.errors import SettingsError
from tests.helpers import Nanolm

LINE = (
    "model=bigram",
    "trainer.max_steps=4",
    "trainer.eval_every=2",
    "trainer.save_every=2",
    "trainer.sample_tokens=0",
)


def test_foreign_files_are_not_overwritten(nanolm: Nanolm, small_text: Path) -> None:
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
    # A run that lost its settings resumes only with the same ones.
    next(path for path in (here / "S").iterdir() if path.is_dir() and path != job).rename(here / "R")
    (here / "R" / "config.yaml").unlink()
    for words, said in (
        (("seed=3", "resume=auto"), "seed: "),
        (("optimizer=sgd", "resume=auto"), "optimizer.name: adamw -> sgd"),
        (("seed=2",), "the directory already contains a run, whose config.yaml is missing"),
    ):
        done = nanolm(*line, "hydra.run.dir=R", "trainer.max_steps=6", *words)
        assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


@pytest.mark.parametrize(
    "word", ["hydra.run.dir=", "hydra.sweep.dir=", "resume=", "hydra.run.dir=' '", "hydra.run.dir=null", "resume=null"]
)
def test_empty_directory_setting_is_refused(word: str) -> None:
    key = word.split("=")[0]
    with pytest.raises(SettingsError, match=rf"{key} is empty\n[\s\S]*as in {key}=outputs/"):
        compose_command([word], multirun=key == "hydra.sweep.dir")
