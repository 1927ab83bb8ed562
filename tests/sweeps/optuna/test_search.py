"""A real study of real runs: pruned, killed, continued, shared."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from nanolm.cli import main as cli
from nanolm.errors import SettingsError
from nanolm.runs.directory import RunDirectory
from nanolm.sweeps.optuna import search
from nanolm.sweeps.optuna.samplers import shuffled_grid
from nanolm.sweeps.optuna.search import FEW, check_points, decisive, probes
from nanolm.sweeps.optuna.settings import OptunaConfig
from nanolm.sweeps.optuna.space import Choice, Interval, Range
from nanolm.sweeps.optuna.study import FOLDER, JOURNAL, KernelLock
from tests.helpers import (
    SMALL,
    Nanolm,
    final_state,
    is_same_state,
    kill_process_group,
    make_config,
    untimed_rows,
    wait_until,
)

STUDY = (
    "train",
    "-m",
    *SMALL,
    "dataset=text",
    "hydra/sweeper=optuna",
    "hydra.sweeper.pruner=asha",
    "hydra.sweeper.tpe_after=3",
    "model.dropout=0.1",
    "trainer.max_steps=90",
    "trainer.eval_every=5",
    "trainer.save_every=10",
    "trainer.log_every=5",
    "optimizer.lr=tag(log,interval(1e-4,1e-1))",
    "size.d_model=8,16",
)


def trials_of(folder: Path) -> list[Any]:
    """The trials of the one study in a sweep's folder, as Optuna reads them."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / JOURNAL
    storage = JournalStorage(JournalFileBackend(str(path), lock_obj=KernelLock(path)))
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage).trials


def told(trial: Any) -> tuple[Any, ...]:
    """What two studies must agree in."""
    return trial.number, trial.state, trial.params, trial.value, trial.intermediate_values, trial.user_attrs[FOLDER]


def runs_of(folder: Path) -> dict[str, RunDirectory]:
    return {path.parent.name: RunDirectory(path.parent) for path in sorted(folder.glob("*/summary.json"))}


def n_rows(folder: Path) -> int:
    """Rows of metrics of all runs of a sweep."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*/metrics.jsonl"))


@pytest.mark.slow
def test_a_study_killed_and_continued_is_the_one_that_was_not(nanolm: Nanolm, small_text: Path) -> None:
    line = (*STUDY, f"dataset.path={small_text}", "hydra.sweeper.n_trials=9")
    done = nanolm(*line, "hydra.sweep.dir=whole", timeout=300)
    assert done.returncode == 0, done.stderr
    whole, parted = nanolm.folder / "whole", nanolm.folder / "parted"
    wanted = n_rows(whole)
    finished: dict[str, bytes] = {}
    for part in (0.3, 0.6, 0.85):
        process = nanolm.start(*line, "hydra.sweep.dir=parted")
        wait_until(lambda part=part: n_rows(parted) >= round(part * wanted), process)
        kill_process_group(process)
        for name, content in finished.items():
            assert (parted / name / "summary.json").read_bytes() == content, "a finished run was touched"
        runs = runs_of(parted)
        finished = {
            name: run.summary.read_bytes()
            for name, run in runs.items()
            if run.read_summary().status in ("completed", "pruned")
        }
    assert finished
    done = nanolm(*line, "hydra.sweep.dir=parted", timeout=300)
    assert done.returncode == 0, done.stderr
    for name, content in finished.items():
        assert (parted / name / "summary.json").read_bytes() == content
    first, second = trials_of(whole), trials_of(parted)
    assert len(first) == 9
    assert {trial.state for trial in first} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert list(map(told, second)) == list(map(told, first))
    assert runs_of(whole).keys() == runs_of(parted).keys()
    for name, run in runs_of(whole).items():
        assert untimed_rows(run) == untimed_rows(RunDirectory(parted / name))
        assert is_same_state(final_state(run), final_state(RunDirectory(parted / name)))
    # Nothing is left to do, and nothing is done.
    again = nanolm(*line, "hydra.sweep.dir=parted", timeout=300)
    assert again.returncode == 0, again.stderr
    assert "9 of them done" in again.stderr
    assert list(map(told, trials_of(parted))) == list(map(told, first))


@pytest.mark.slow
def test_a_pruned_run_says_so_and_goes_on_when_asked(nanolm: Nanolm, small_text: Path) -> None:
    fixed = [word for word in STUDY[2:] if not word.startswith(("hydra", "optimizer.lr", "size.d_model"))]
    fixed += [f"dataset.path={small_text}"]
    rates = Choice("optimizer.lr", ("1e-05", "0.03"))
    # An order in which the good one comes first.
    seed = next(seed for seed in range(99) if shuffled_grid([rates], seed)[0][rates.key] == "0.03")
    line = ["train", "-m", *fixed, "optimizer.lr=1e-5,3e-2", "hydra/sweeper=optuna", "hydra.sweep.dir=study"]
    line += ["hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=asha", f"hydra.sweeper.seed={seed}"]
    done = nanolm(*line, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1 completed, 1 pruned" in done.stdout or "1 pruned, 1 completed" in done.stdout
    assert "tokens     6,400, 56% of the 11,520" in done.stdout
    trials = trials_of(nanolm.folder / "study")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert list(trials[1].intermediate_values) == [5, 10]
    run = RunDirectory(nanolm.folder / "study" / trials[1].user_attrs[FOLDER])
    summary = run.read_summary()
    assert summary.status == "pruned"
    assert summary.step == 10
    assert (run.checkpoints / "step-00000010").is_dir()
    # By itself, from the same settings, to the same end.
    assert nanolm("train", *fixed, "optimizer.lr=1e-5", "hydra.run.dir=alone").returncode == 0
    done = nanolm("train", f"resume=study/{run.path.name}")
    assert done.returncode == 0, done.stderr
    assert "goes on from step 10" in done.stderr
    assert run.read_summary().status == "completed"
    assert untimed_rows(run) == untimed_rows(RunDirectory(nanolm.folder / "alone"))
    # The study has its result, and takes none other from the longer run.
    assert nanolm(*line).returncode == 0
    assert trials_of(nanolm.folder / "study")[1].state == TrialState.PRUNED


@pytest.mark.slow
def test_more_trials_go_on_with_the_study_and_another_line_has_its_own(nanolm: Nanolm, small_text: Path) -> None:
    line = (*STUDY, f"dataset.path={small_text}", "hydra.sweep.dir=study", "trainer.max_steps=20")
    assert nanolm(*line, "hydra.sweeper.n_trials=2").returncode == 0
    done = nanolm(*line, "hydra.sweeper.n_trials=4")
    assert done.returncode == 0, done.stderr
    assert "4 trials in study" in done.stderr
    assert "2 of them done" in done.stderr
    assert len(trials_of(nanolm.folder / "study")) == 4
    other = nanolm(*line, "hydra.sweeper.n_trials=1", "hydra.sweeper.seed=5")
    assert other.returncode == 0, other.stderr
    assert "done" not in other.stderr.splitlines()[0]


@pytest.mark.slow
def test_what_a_grid_has_trained_is_read_from_its_folders(nanolm: Nanolm, small_text: Path) -> None:
    line = [word for word in STUDY if not word.startswith(("hydra", "optimizer.lr"))]
    line += [f"dataset.path={small_text}", "hydra.sweep.dir=study", "trainer.max_steps=20"]
    assert nanolm(*line).returncode == 0
    before = {name: run.summary.read_bytes() for name, run in runs_of(nanolm.folder / "study").items()}
    assert len(before) == 2
    done = nanolm(*line, "hydra/sweeper=optuna", "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=5")
    assert done.returncode == 0, done.stderr
    assert {name: run.summary.read_bytes() for name, run in runs_of(nanolm.folder / "study").items()} == before
    trials = trials_of(nanolm.folder / "study")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5
    assert {trial.value for trial in trials} == {json.loads(text)["best_val_loss"] for text in before.values()}


@pytest.mark.slow
def test_trials_run_at_a_time_where_the_launcher_does(nanolm: Nanolm, small_text: Path) -> None:
    line = (*STUDY, f"dataset.path={small_text}", "hydra.sweep.dir=study", "hydra.sweeper.n_trials=4")
    line = (*line, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = nanolm(*line, timeout=300)
    assert done.returncode == 0, done.stderr
    trials = trials_of(nanolm.folder / "study")
    assert len(trials) == 4
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(trial.intermediate_values for trial in trials)
    owners = [trial.datetime_start for trial in trials]
    assert owners == sorted(owners)


@pytest.mark.slow
def test_two_shells_share_the_trials(nanolm: Nanolm, small_text: Path) -> None:
    line = (*STUDY, f"dataset.path={small_text}", "hydra.sweep.dir=study", "hydra.sweeper.n_trials=6")
    shells = [nanolm.start(*line) for _ in range(2)]
    for shell in shells:
        out, err = shell.communicate(timeout=200)
        assert shell.returncode == 0, err
        assert "6 jobs" in out
    trials = trials_of(nanolm.folder / "study")
    assert len(trials) == 6
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({trial.user_attrs["owner"] for trial in trials}) == 2
    for run in runs_of(nanolm.folder / "study").values():
        steps = [row.step for row in run.read_metrics("val")]
        assert steps == sorted(set(steps))


def test_mistakes_are_said_before_anything_is_trained(nanolm: Nanolm, small_text: Path) -> None:
    line = (*STUDY, f"dataset.path={small_text}", "hydra.sweep.dir=study")
    for words, complaint in (
        (["hydra.sweeper.sampler=tpee", "hydra.sweeper.pruner=asa"], "(?s)no sampler 'tpee'.*no pruner 'asa'"),
        (["hydra.sweeper.n_trial=3"], "did you mean hydra.sweeper.n_trials"),
        (["size.n_layers=interval(1,4)"], "size.n_layers=int\\(interval\\(1,4\\)\\)"),
    ):
        done = nanolm(*line, *words)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert re.search(complaint, done.stderr), done.stderr
    assert not (nanolm.folder / "study").exists()


def test_trials_that_cannot_be_composed_are_replaced(
    tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Two heads do not divide an odd width. The ends are checked first, and are even.
    words = ["train", "-m", *SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=1", "model=gpt2"]
    words += ["size.n_heads=2", "size.d_model=int(interval(8,16))", "optimizer.lr=interval(1e-4,1e-2)"]
    words += ["hydra/sweeper=optuna", "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=2"]
    assert cli.run([*words, "hydra.sweep.dir=study"]) == 0
    trials = trials_of(tmp_path / "study")
    states = [trial.state for trial in trials]
    assert states.count(TrialState.COMPLETE) == 2
    assert (n_failed := states.count(TrialState.FAIL)) == len(trials) - 2 > 0
    said = capsys.readouterr()
    assert f"left out   {n_failed} trial" in said.out
    assert "2 jobs: 2 completed" in said.out
    assert "is not divisible by size.n_heads (2)" in said.err
    # Nothing but impossible trials: the search ends.
    monkeypatch.setattr(search, "MAX_IMPOSSIBLE", 1)
    with pytest.raises(SystemExit, match="1"):
        cli.run([*words, "hydra.sweep.dir=other"])
    assert "the search ends" in capsys.readouterr().err


def test_values_that_do_not_fit_together_are_left_to_the_search(small_text: Path) -> None:
    settings = OptunaConfig(sampler="random", n_trials=2)
    fixed = [*SMALL, "dataset=text", f"dataset.path={small_text}", "size.d_model=16"]

    def checked(*space: Choice, more: tuple[str, ...] = ()) -> int:
        return check_points(settings, space, [*fixed, *more], {}).size.n_heads

    assert checked(Choice("size.n_heads", (3, 2, 5))) == 2, "the first that fits"
    with pytest.raises(SettingsError, match=r"size\.n_heads 3 heads[\s\S]*size\.n_heads 5 heads"):
        checked(Choice("size.n_heads", (3, 5)))
    with pytest.raises(SettingsError, match="must be at least 1"):
        checked(Choice("size.n_heads", (2, 0)))
    with pytest.raises(SettingsError, match=r"d_model \(16\) is not divisible by size\.n_heads \(3\)"):
        checked(Choice("optimizer.lr", (1e-3, 1e-2)), more=("size.n_heads=3",))


def test_optuna_that_is_not_installed_is_said(nanolm: Nanolm, small_text: Path, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'optuna' else found(name, package)\n"
    )
    nanolm.environment["PYTHONPATH"] = os.pathsep.join(
        [str(tmp_path / "without"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    done = nanolm(*STUDY, f"dataset.path={small_text}")
    assert done.returncode == 2
    assert "optuna is not installed" in done.stderr
    assert "pip install 'cmaes>=" in done.stderr


def test_a_small_space_is_probed_at_every_point_and_a_large_one_at_its_edges() -> None:
    small = [Choice("a", ("x", "y")), Range("b", 1, 4, 1)]
    assert len(probes(small)) == 8
    large = [Choice("a", ("x", "y", "z")), Range("b", 1, FEW, 1), Interval("c", 0.0, 1.0)]
    assert probes(large) == [
        {"a": "x", "b": 1, "c": 0.0},
        {"a": "y", "b": 1, "c": 0.0},
        {"a": "z", "b": 1, "c": 0.0},
        {"a": "x", "b": FEW, "c": 0.0},
        {"a": "x", "b": 1, "c": 1.0},
        {"a": "x", "b": 1, "c": 0.382},
    ]


def test_what_decides_a_study_is_what_decides_its_runs() -> None:
    base = decisive(make_config("trainer.max_steps=10"))
    assert decisive(make_config("trainer.max_steps=10", "trainer.device=cpu", "trainer.log_every=3")) == base
    for word in ("trainer.max_steps=20", "trainer.eval_every=7", "seed=3", "model.dropout=0.3"):
        assert decisive(make_config("trainer.max_steps=10", word)) != base
