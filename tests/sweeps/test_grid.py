"""`nanolm train -m` in this process: what is run, what is not run again, and what is printed."""

from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import update_summary
from tests.helpers import SMALL


@pytest.fixture
def settings(tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Return the overrides that all sweeps here share, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    return (*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=3", "model=bigram")


def sweep(*overrides: str) -> int:
    """Run a sweep and return its exit status."""
    return cli.run(["train", "-m", *overrides])


def times(directory: str = "outputs/sweep") -> dict[str, int]:
    """Return when each run was last started or resumed, by its name."""
    return {path.parent.name: path.stat().st_mtime_ns for path in Path(directory).glob("*/config.yaml")}


def test_sweep_repeated_runs_only_missing_jobs(settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*settings, "seed=1,2", "optimizer.lr=1e-3") == 0
    first = times()
    assert sorted(name[:7] for name in first) == ["seed=1-", "seed=2-"]
    out, err = capsys.readouterr()
    assert "2 jobs: 2 completed" in out
    assert "nanolm compare outputs/sweep" in out
    lines = err.splitlines()
    assert lines[0] == "2 jobs in outputs/sweep"
    assert [line.split(" ")[1:3] for line in lines[1:]] == [["completed,", "val"]] * 2
    assert len(lines) == 3

    assert sweep("optimizer.lr=0.001", "seed=2,1", *settings) == 0
    assert times() == first
    assert "2 jobs in outputs/sweep, 2 of them done" in capsys.readouterr().err

    assert sweep(*settings, "seed=3,2,1", "optimizer.lr=1e-3,1e-2") == 0
    longer = times()
    assert len(longer) == 6
    assert {name: longer[name] for name in first} == first
    assert "6 jobs: 6 completed; 2 were done before" in capsys.readouterr().out


def test_sweep_run_can_be_resumed_by_its_folder(settings: tuple[str, ...]) -> None:
    assert sweep(*settings, "seed=1,2", "optimizer.lr=1e-3,1e-2") == 0
    (folder,) = Path("outputs/sweep").glob("optimizer.lr=0.01,seed=2-*")
    assert cli.run(["train", f"resume={folder}", "trainer.max_steps=5"]) == 0
    assert RunDirectory(folder).read_summary().step == 5


def test_sweep_resumes_a_killed_job(settings: tuple[str, ...]) -> None:
    assert sweep(*settings, "seed=1,2") == 0
    before = times()
    for name in before:
        run = RunDirectory(Path("outputs/sweep") / name)
        if run.read_summary().seed == 2:
            update_summary(run.summary, status="running")
            killed = run
    assert sweep(*settings, "seed=1,2") == 0
    assert [name for name, time in times().items() if time != before[name]] == [killed.path.name]
    assert killed.read_summary().status == "completed"
    assert "resumes from step 3" in killed.log.read_text()


def test_sweep_retries_only_the_job_that_failed(
    settings: tuple[str, ...], small_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = small_text.with_name("late.txt")
    overrides = (*settings, f"dataset.path={late},{small_text}", "seed=1")
    assert sweep(*overrides) == 1
    out, err = capsys.readouterr()
    (folder,) = Path("outputs/sweep").glob("dataset.path=*late*")
    assert f"nanolm: {folder} failed: there is no file or folder matching" in err
    assert "Traceback" not in err
    assert "2 jobs: 1 completed, 1 failed" in out
    assert "the same command again" in out
    done = times()
    assert len(done) == 1

    late.write_text(small_text.read_text())
    assert sweep(*overrides) == 0
    after = times()
    assert len(after) == 2
    assert done.items() <= after.items()
    assert not (folder / "error.txt").exists()
    assert "failed" not in capsys.readouterr().out


def test_sweep_can_start_no_job_after_a_failure(
    settings: tuple[str, ...], small_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (*settings, f"dataset.path=missing.txt,{small_text}", "seed=1")
    assert sweep(*overrides, "sweep.fail_fast=true") == 1
    assert times() == {}
    assert "2 jobs: 1 failed, 1 not started" in capsys.readouterr().out
    assert [path.name[:20] for path in Path("outputs/sweep").glob("*-*")] == ["dataset.path=missing"]
    assert sweep(*overrides) == 1
    (done,) = times()
    config = RunDirectory(Path("outputs/sweep") / done).config.read_text()
    assert "fail_fast" not in config


def test_sweep_counts_a_diverged_run_as_done(settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    overrides = (*settings, "optimizer=sgd", "optimizer.lr=1e-2,1e38", "trainer.max_steps=8", "trainer.clip_norm=null")
    assert sweep(*overrides) == 0
    out, err = capsys.readouterr()
    assert "diverged: the run diverged at step" in err
    assert "2 jobs: 1 completed, 1 diverged" in out
    before = times()
    assert sweep(*overrides) == 0
    assert times() == before


@pytest.mark.slow
def test_sweep_file_defines_jobs_and_folder(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine" / "sweep" / "widths.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "# @package _global_\n"
        "hydra:\n"
        "  sweep:\n    dir: outputs/${hydra:runtime.choices.sweep}\n"
        "  sweeper:\n"
        "    params:\n      seed: 1,2\n"
        "    variants:\n      table: []\n      uniform: [model=gpt, size.n_layers=1]\n"
        "trainer:\n  log_every: 1\n"
    )
    overrides = [override for override in settings if not override.startswith(("model=", "size.n_layers"))]
    assert sweep("--config-dir", str(tmp_path / "mine"), "sweep=widths", *overrides) == 0
    names = sorted(name.rpartition("-")[0] for name in times("outputs/widths"))
    assert names == [f"variant={name},seed={n}" for name in ("table", "uniform") for n in (1, 2)]
    (run,) = Path("outputs/widths").glob("variant=uniform,seed=1*")
    assert len(RunDirectory(run).read_metrics()) == 4
    file.write_text("# @package _global_\nhydra:\n  sweeper:\n    params:\n      optimizer.lrr: 1,2\n")
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"there is no setting 'optimizer\.lrr'[\s\S]*did you mean optimizer.lr"):
        sweep("--config-dir", str(tmp_path / "mine"), "sweep=widths", *overrides)
    with pytest.raises(ValueError, match="sweep=widths applies to sweeps only"):
        cli.run(["train", "--config-dir", str(tmp_path / "mine"), "sweep=widths", *overrides])
    with pytest.raises(ValueError, match=r"sweep\.fail_fast=true applies to sweeps only"):
        cli.run(["train", "sweep.fail_fast=true"])
    with pytest.raises(ValueError, match=r"sweep\.max_hours=1 applies to sweeps only"):
        cli.run(["train", "sweep.max_hours=1"])
    with pytest.raises(ValueError, match=r"sweep\.max_hours is -1, and must be more than 0"):
        sweep("sweep.max_hours=-1", *overrides)


def test_sweep_refuses_an_unknown_launcher(settings: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"no hydra/launcher is called 'locl'[\s\S]*did you mean local"):
        sweep(*settings, "seed=1,2", "hydra/launcher=locl")
    with pytest.raises(ValueError, match="--cfg prints the settings of one run"):
        cli.run(["train", "-m", "--cfg", "job", *settings])


def test_sweep_refuses_a_job_trained_for_more_steps(
    settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*settings, "seed=1,2") == 0
    (run,) = Path("outputs/sweep").glob("seed=1-*")
    steps = 2 * RunDirectory(run).read_summary().step
    assert cli.run(["train", f"resume={run}", f"trainer.max_steps={steps}"]) == 0
    rows = RunDirectory(run).metrics.read_bytes()
    capsys.readouterr()
    assert sweep(*settings, "seed=1,2") == 1
    printed = capsys.readouterr()
    assert f"trained to step {steps}" in printed.err
    assert "1 completed, 1 failed" in printed.out
    assert RunDirectory(run).metrics.read_bytes() == rows


def test_resume_of_a_missing_run_names_it(settings: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"seed=1-typo"):
        cli.run(["train", "resume=outputs/sweep/seed=1-typo"])
