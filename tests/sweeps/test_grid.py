"""`nanolm train -m`, in this process: what is run, what is not run again, and what is said."""

from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import update_summary
from tests.helpers import SMALL


@pytest.fixture
def line(tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The words that all sweeps here share, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return (*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=3", "model=bigram")


def sweep(*words: str) -> int:
    """The exit status."""
    try:
        return cli.run(["train", "-m", *words])
    except SystemExit as ended:
        return int(ended.code or 0)


def times(directory: str = "outputs/sweep") -> dict[str, int]:
    """When the settings of each run were last written: whenever it was begun or gone on with."""
    return {path.parent.name: path.stat().st_mtime_ns for path in Path(directory).glob("*/config.yaml")}


def test_the_same_line_runs_nothing_and_a_longer_one_what_is_missing(
    line: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*line, "seed=1,2", "optimizer.lr=1e-3") == 0
    first = times()
    assert sorted(name[:7] for name in first) == ["seed=1-", "seed=2-"]
    out, err = capsys.readouterr()
    assert "2 jobs: 2 completed" in out
    assert "nanolm compare outputs/sweep" in out
    lines = err.splitlines()
    assert lines[0] == "2 jobs in outputs/sweep"
    assert [line.split(" ")[1:3] for line in lines[1:]] == [["completed,", "val"]] * 2
    assert len(lines) == 3

    assert sweep("optimizer.lr=0.001", "seed=2,1", *line) == 0
    assert times() == first
    assert "2 jobs in outputs/sweep, 2 of them done" in capsys.readouterr().err

    assert sweep(*line, "seed=3,2,1", "optimizer.lr=1e-3,1e-2") == 0
    longer = times()
    assert len(longer) == 6
    assert {name: longer[name] for name in first} == first
    assert "6 jobs: 6 completed; 2 were done before" in capsys.readouterr().out


def test_a_run_of_a_sweep_is_named_as_it_is_called(line: tuple[str, ...]) -> None:
    assert sweep(*line, "seed=1,2", "optimizer.lr=1e-3,1e-2") == 0
    (folder,) = Path("outputs/sweep").glob("optimizer.lr=0.01,seed=2-*")
    assert cli.run(["train", f"resume={folder}", "trainer.max_steps=5"]) == 0
    assert RunDirectory(folder).read_summary().step == 5


def test_what_was_cut_off_goes_on(line: tuple[str, ...]) -> None:
    assert sweep(*line, "seed=1,2") == 0
    before = times()
    for name in before:
        run = RunDirectory(Path("outputs/sweep") / name)
        if run.read_summary().seed == 2:
            update_summary(run.summary, status="running")
            cut_off = run
    assert sweep(*line, "seed=1,2") == 0
    assert [name for name, time in times().items() if time != before[name]] == [cut_off.path.name]
    assert cut_off.read_summary().status == "completed"
    assert "goes on from step 3" in cut_off.log.read_text()


def test_one_job_that_fails_lets_the_others_run_and_is_run_alone_the_next_time(
    line: tuple[str, ...], small_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = small_text.with_name("late.txt")
    words = (*line, f"dataset.path={late},{small_text}", "seed=1")
    assert sweep(*words) == 1
    out, err = capsys.readouterr()
    (folder,) = Path("outputs/sweep").glob("dataset.path=*late*")
    assert f"nanolm: {folder} failed: there is no file, folder or match of" in err
    assert "Traceback" not in err
    assert "2 jobs: 1 completed, 1 failed" in out
    assert "the same line again" in out
    done = times()
    assert len(done) == 1

    late.write_text(small_text.read_text())
    assert sweep(*words) == 0
    after = times()
    assert len(after) == 2
    assert done.items() <= after.items()
    assert not (folder / "error.txt").exists()
    assert "failed" not in capsys.readouterr().out


def test_no_job_starts_after_one_that_failed_when_that_is_asked(
    line: tuple[str, ...], small_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*line, f"dataset.path=missing.txt,{small_text}", "seed=1")
    assert sweep(*words, "sweep.fail_fast=true") == 1
    assert times() == {}
    assert "2 jobs: 1 failed, 1 not begun" in capsys.readouterr().out
    assert [path.name[:20] for path in Path("outputs/sweep").glob("*-*")] == ["dataset.path=missing"]
    assert sweep(*words) == 1
    (done,) = times()
    config = RunDirectory(Path("outputs/sweep") / done).config.read_text()
    assert "fail_fast" not in config


def test_a_run_that_diverged_is_a_result(line: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    words = (*line, "optimizer=sgd", "optimizer.lr=1e-2,1e38", "trainer.max_steps=8", "trainer.clip_norm=null")
    assert sweep(*words) == 0
    out, err = capsys.readouterr()
    assert "diverged: the run diverged at step" in err
    assert "2 jobs: 1 completed, 1 diverged" in out
    before = times()
    assert sweep(*words) == 0
    assert times() == before


@pytest.mark.slow
def test_a_study_brings_its_own_jobs_and_folder(
    line: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "mine" / "sweep" / "widths.yaml"
    study.parent.mkdir(parents=True)
    study.write_text(
        "# @package _global_\n"
        "hydra:\n"
        "  sweep:\n    dir: outputs/${hydra:runtime.choices.sweep}\n"
        "  sweeper:\n"
        "    params:\n      seed: 1,2\n"
        "    variants:\n      table: []\n      uniform: [model=gpt, size.n_layers=1]\n"
        "trainer:\n  log_every: 1\n"
    )
    words = [word for word in line if not word.startswith(("model=", "size.n_layers"))]
    assert sweep("--config-dir", str(tmp_path / "mine"), "sweep=widths", *words) == 0
    names = sorted(name.rpartition("-")[0] for name in times("outputs/widths"))
    assert names == [f"variant={name},seed={n}" for name in ("table", "uniform") for n in (1, 2)]
    (run,) = Path("outputs/widths").glob("variant=uniform,seed=1*")
    assert len(RunDirectory(run).read_metrics()) == 4
    study.write_text("# @package _global_\nhydra:\n  sweeper:\n    params:\n      optimizer.lrr: 1,2\n")
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"there is no setting 'optimizer\.lrr'[\s\S]*did you mean optimizer.lr"):
        sweep("--config-dir", str(tmp_path / "mine"), "sweep=widths", *words)
    with pytest.raises(ValueError, match="sweep=widths is about many runs"):
        cli.run(["train", "--config-dir", str(tmp_path / "mine"), "sweep=widths", *words])
    with pytest.raises(ValueError, match=r"sweep\.fail_fast=true is about many runs"):
        cli.run(["train", "sweep.fail_fast=true"])


def test_a_launcher_that_is_not_installed_is_named_with_what_brings_it(line: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"no hydra/launcher is called 'joblb'[\s\S]*did you mean joblib"):
        sweep(*line, "seed=1,2", "hydra/launcher=joblb")
    with pytest.raises(ValueError, match="--cfg prints the settings of one run"):
        cli.run(["train", "-m", "--cfg", "job", *line])


def test_a_job_that_was_trained_on_by_hand_is_none_of_the_sweep(
    line: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*line, "seed=1,2") == 0
    (run,) = Path("outputs/sweep").glob("seed=1-*")
    steps = 2 * RunDirectory(run).read_summary().step
    assert cli.run(["train", f"resume={run}", f"trainer.max_steps={steps}"]) == 0
    rows = RunDirectory(run).metrics.read_bytes()
    capsys.readouterr()
    assert sweep(*line, "seed=1,2") == 1
    said = capsys.readouterr()
    assert f"trained on to step {steps}" in said.err
    assert "1 completed, 1 failed" in said.out
    assert RunDirectory(run).metrics.read_bytes() == rows


def test_a_run_that_is_not_there_is_said_whatever_its_name(line: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"seed=1-typo"):
        cli.run(["train", "resume=outputs/sweep/seed=1-typo"])
