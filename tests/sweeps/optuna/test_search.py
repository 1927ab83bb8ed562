"""Optuna studies of real runs: pruned, killed, continued, shared."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from nanolm.cli import main as cli
from nanolm.runs.directory import RunDirectory
from nanolm.sweeps.optuna import search
from nanolm.sweeps.optuna.journal import JOURNAL, JournalLock
from nanolm.sweeps.optuna.journal_entries import FOLDER
from nanolm.sweeps.optuna.samplers import shuffled_grid
from nanolm.sweeps.optuna.space import Choice
from tests.helpers import (
    SMALL,
    Nanolm,
    final_state,
    is_same_state,
    kill_process_group,
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
    "hydra.sweeper.tpe_startup_trials=3",
    "model.dropout=0.1",
    "trainer.max_steps=90",
    "trainer.eval_every=5",
    "trainer.save_every=10",
    "trainer.log_every=5",
    "optimizer.lr=tag(log,interval(1e-4,1e-1))",
    "size.d_model=8,16",
)


def trials_of(folder: Path) -> list[Any]:
    """Return the trials of the only study in a sweep's folder, as Optuna reads them."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / JOURNAL
    storage = JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage).trials


def result_of(trial: Any) -> tuple[Any, ...]:
    """Return everything in which the trials of two equal studies agree."""
    return trial.number, trial.state, trial.params, trial.value, trial.intermediate_values, trial.user_attrs[FOLDER]


def runs_of(folder: Path) -> dict[str, RunDirectory]:
    return {path.parent.name: RunDirectory(path.parent) for path in sorted(folder.glob("*/summary.json"))}


def n_rows(folder: Path) -> int:
    """Return the number of rows in the metrics of all runs of a sweep."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*/metrics.jsonl"))


@pytest.mark.slow
def test_killed_study_continues_with_equal_results(nanolm: Nanolm, small_text: Path) -> None:
    arguments = (*STUDY, f"dataset.path={small_text}", "hydra.sweeper.n_trials=9")
    done = nanolm(*arguments, "hydra.sweep.dir=uninterrupted", timeout=300)
    assert done.returncode == 0, done.stderr
    uninterrupted, resumed = nanolm.folder / "uninterrupted", nanolm.folder / "resumed"
    wanted = n_rows(uninterrupted)
    finished: dict[str, bytes] = {}
    for part in (0.3, 0.6, 0.85):
        process = nanolm.start(*arguments, "hydra.sweep.dir=resumed")
        wait_until(lambda part=part: n_rows(resumed) >= round(part * wanted), process)
        kill_process_group(process)
        for name, content in finished.items():
            assert (resumed / name / "summary.json").read_bytes() == content, "a finished run was touched"
        runs = runs_of(resumed)
        finished = {
            name: run.summary.read_bytes()
            for name, run in runs.items()
            if run.read_summary().status in ("completed", "pruned")
        }
    assert finished
    done = nanolm(*arguments, "hydra.sweep.dir=resumed", timeout=300)
    assert done.returncode == 0, done.stderr
    for name, content in finished.items():
        assert (resumed / name / "summary.json").read_bytes() == content
    first, second = trials_of(uninterrupted), trials_of(resumed)
    assert len(first) == 9
    assert {trial.state for trial in first} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert list(map(result_of, second)) == list(map(result_of, first))
    assert runs_of(uninterrupted).keys() == runs_of(resumed).keys()
    for name, run in runs_of(uninterrupted).items():
        assert untimed_rows(run) == untimed_rows(RunDirectory(resumed / name))
        assert is_same_state(final_state(run), final_state(RunDirectory(resumed / name)))
    # A finished study runs nothing.
    again = nanolm(*arguments, "hydra.sweep.dir=resumed", timeout=300)
    assert again.returncode == 0, again.stderr
    assert "9 of them done" in again.stderr
    assert list(map(result_of, trials_of(resumed))) == list(map(result_of, first))


@pytest.mark.slow
def test_pruned_run_can_be_resumed(nanolm: Nanolm, small_text: Path) -> None:
    fixed = [override for override in STUDY[2:] if not override.startswith(("hydra", "optimizer.lr", "size.d_model"))]
    fixed += [f"dataset.path={small_text}"]
    rates = Choice("optimizer.lr", ("1e-05", "0.03"))
    # An order in which the better rate comes first.
    seed = next(seed for seed in range(99) if shuffled_grid([rates], seed)[0][rates.key] == "0.03")
    arguments = ["train", "-m", *fixed, "optimizer.lr=1e-5,3e-2", "hydra/sweeper=optuna", "hydra.sweep.dir=study"]
    arguments += ["hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=asha", f"hydra.sweeper.seed={seed}"]
    done = nanolm(*arguments, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1 completed, 1 pruned" in done.stdout or "1 pruned, 1 completed" in done.stdout
    assert "tokens     6,400, 56% of the 11,520 without pruning" in done.stdout
    trials = trials_of(nanolm.folder / "study")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert list(trials[1].intermediate_values) == [5, 10]
    run = RunDirectory(nanolm.folder / "study" / trials[1].user_attrs[FOLDER])
    summary = run.read_summary()
    assert summary.status == "pruned"
    assert summary.step == 10
    assert (run.checkpoints / "step-00000010").is_dir()
    # A single run with the same settings has the same result.
    assert nanolm("train", *fixed, "optimizer.lr=1e-5", "hydra.run.dir=alone").returncode == 0
    done = nanolm("train", f"resume=study/{run.path.name}")
    assert done.returncode == 0, done.stderr
    assert "resumes from step 10" in done.stderr
    assert run.read_summary().status == "completed"
    assert untimed_rows(run) == untimed_rows(RunDirectory(nanolm.folder / "alone"))
    # The study keeps its result when the run becomes longer.
    assert nanolm(*arguments).returncode == 0
    assert trials_of(nanolm.folder / "study")[1].state == TrialState.PRUNED


@pytest.mark.slow
def test_more_trials_continue_a_study_and_other_seeds_do_not(nanolm: Nanolm, small_text: Path) -> None:
    arguments = (*STUDY, f"dataset.path={small_text}", "hydra.sweep.dir=study", "trainer.max_steps=20")
    assert nanolm(*arguments, "hydra.sweeper.n_trials=2").returncode == 0
    done = nanolm(*arguments, "hydra.sweeper.n_trials=4")
    assert done.returncode == 0, done.stderr
    assert "4 trials in study" in done.stderr
    assert "2 of them done" in done.stderr
    assert len(trials_of(nanolm.folder / "study")) == 4
    other = nanolm(*arguments, "hydra.sweeper.n_trials=1", "hydra.sweeper.seed=5")
    assert other.returncode == 0, other.stderr
    assert "done" not in other.stderr.splitlines()[0]


@pytest.mark.slow
def test_study_uses_the_runs_of_a_grid(nanolm: Nanolm, small_text: Path) -> None:
    arguments = [override for override in STUDY if not override.startswith(("hydra", "optimizer.lr"))]
    arguments += [f"dataset.path={small_text}", "hydra.sweep.dir=study", "trainer.max_steps=20"]
    assert nanolm(*arguments).returncode == 0
    before = {name: run.summary.read_bytes() for name, run in runs_of(nanolm.folder / "study").items()}
    assert len(before) == 2
    done = nanolm(*arguments, "hydra/sweeper=optuna", "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=5")
    assert done.returncode == 0, done.stderr
    assert {name: run.summary.read_bytes() for name, run in runs_of(nanolm.folder / "study").items()} == before
    trials = trials_of(nanolm.folder / "study")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5
    assert {trial.value for trial in trials} == {json.loads(text)["best_val_loss"] for text in before.values()}


@pytest.mark.slow
def test_trials_run_concurrently(nanolm: Nanolm, small_text: Path) -> None:
    arguments = (*STUDY, f"dataset.path={small_text}", "hydra.sweep.dir=study", "hydra.sweeper.n_trials=4")
    arguments = (*arguments, "hydra/launcher=local", "hydra.launcher.n_jobs=2")
    done = nanolm(*arguments, timeout=300)
    assert done.returncode == 0, done.stderr
    trials = trials_of(nanolm.folder / "study")
    assert len(trials) == 4
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(trial.intermediate_values for trial in trials)
    owners = [trial.datetime_start for trial in trials]
    assert owners == sorted(owners)


@pytest.mark.slow
def test_two_processes_share_the_trials_of_a_study(nanolm: Nanolm, small_text: Path) -> None:
    arguments = (*STUDY, f"dataset.path={small_text}", "hydra.sweep.dir=study", "hydra.sweeper.n_trials=6")
    shells = [nanolm.start(*arguments) for _ in range(2)]
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


def test_mistakes_are_reported_before_training(nanolm: Nanolm, small_text: Path) -> None:
    arguments = (*STUDY, f"dataset.path={small_text}", "hydra.sweep.dir=study")
    for overrides, complaint in (
        (
            ["hydra.sweeper.sampler=tpee", "hydra.sweeper.pruner=asa"],
            "(?s)unknown sampler 'tpee'.*unknown pruner 'asa'",
        ),
        (["hydra.sweeper.n_trial=3"], "did you mean hydra.sweeper.n_trials"),
        (["size.n_layers=interval(1,4)"], "size.n_layers=int\\(interval\\(1,4\\)\\)"),
    ):
        done = nanolm(*arguments, *overrides)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert re.search(complaint, done.stderr), done.stderr
    assert not (nanolm.folder / "study").exists()


@pytest.mark.slow
def test_trials_with_impossible_settings_are_replaced(
    tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Two heads do not divide an odd width. The ends are checked first, and are even.
    overrides = [
        "train",
        "-m",
        *SMALL,
        "dataset=text",
        f"dataset.path={small_text}",
        "trainer.max_steps=1",
        "model=gpt2",
    ]
    overrides += ["size.n_heads=2", "size.d_model=int(interval(8,16))", "optimizer.lr=interval(1e-4,1e-2)"]
    overrides += ["hydra/sweeper=optuna", "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=2"]
    assert cli.run([*overrides, "hydra.sweep.dir=study"]) == 0
    trials = trials_of(tmp_path / "study")
    states = [trial.state for trial in trials]
    assert states.count(TrialState.COMPLETE) == 2
    assert (n_failed := states.count(TrialState.FAIL)) == len(trials) - 2 > 0
    printed = capsys.readouterr()
    assert f"skipped    {n_failed} trial" in printed.out
    assert "2 jobs: 2 completed" in printed.out
    assert "is not divisible by size.n_heads (2)" in printed.err
    # Nothing but impossible trials: the search ends.
    monkeypatch.setattr(search, "MAX_IMPOSSIBLE", 1)
    assert cli.run([*overrides, "hydra.sweep.dir=other"]) == 1
    assert "the search ends" in capsys.readouterr().err


def test_missing_optuna_is_reported_with_a_hint(nanolm: Nanolm, small_text: Path, tmp_path: Path) -> None:
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
