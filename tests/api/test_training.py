"""Training through the Python API: to the end, step by step, and as a sweep."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import nanolm
from nanolm.cli.main import run as run_command
from nanolm.errors import DivergedError, NanolmError, RunError, SettingsError, SweepError
from nanolm.runs.directory import RunDirectory
from tests.helpers import final_state, is_same_state, mostly_slow, sigterm_at_step, untimed_rows

Words = tuple[str, ...]
DROPOUT = ("model=gpt", "model.dropout=0.2", "size.n_layers=1")


def surroundings() -> list[object]:
    """Return the global state that the program of a user has."""
    hydra = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    generators = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    flags = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), torch.get_num_threads()
    return [hydra, handlers, generators, flags, list(logging.root.handlers), Path.cwd(), dict(os.environ)]


def same_runs(*runs: nanolm.Run) -> bool:
    """Compare rows, weights and the state of training of runs, bit by bit."""
    first, *others = (RunDirectory(run.path) for run in runs)
    return all(
        untimed_rows(first) == untimed_rows(other) and is_same_state(_without_python(first), _without_python(other))
        for other in others
    )


def _without_python(run: RunDirectory) -> object:
    """Return weights and state without Python's generator, which steps through the API share with their caller."""
    weights, state = final_state(run)
    return weights, {**state, "rng": {key: value for key, value in state["rng"].items() if key != "python"}}


def test_train_takes_words_and_trainer_settings(words: Words) -> None:
    run = nanolm.train(*words, "model=bigram", quiet=True, max_steps=3, eval_every=2, clip_norm=None)
    assert run.summary.status == "completed"
    assert (run.config.trainer.max_steps, run.config.trainer.clip_norm) == (3, None)
    assert run.path.is_absolute()


@pytest.mark.slow
def test_errors_have_the_text_of_the_command_line(words: Words) -> None:
    with pytest.raises(SettingsError) as by_command:
        run_command(["train", *words, "model=gtp", "trainer.maxsteps=3"])
    with pytest.raises(SettingsError) as by_function:
        nanolm.train(*words, "model=gtp", maxsteps=3)
    assert str(by_function.value) == str(by_command.value)
    assert "did you mean gpt?" in str(by_function.value)
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("word", "found"),
    [("-m", "is not an override"), ("dry_run=true", "trains no run"), (3, "3 is not an override")],
)
def test_train_refuses_what_is_no_setting(words: Words, word: str, found: str) -> None:
    with pytest.raises(SettingsError, match=found):
        nanolm.train(*words, word)


def test_surroundings_are_left_unchanged(words: Words) -> None:
    before = surroundings()
    nanolm.train(*words, *DROPOUT, max_steps=2, quiet=True)
    for _ in nanolm.training(*words, "model=bigram", max_steps=9, quiet=True):
        break
    assert surroundings() == before


@pytest.mark.slow
def test_many_runs_leave_the_surroundings_unchanged(words: Words) -> None:
    before = surroundings()
    for seed in range(5):
        nanolm.train(*words, *DROPOUT, f"seed={seed}", "trainer.max_steps=2", quiet=True)
    with pytest.raises(DivergedError):
        nanolm.train(*words, *DROPOUT, "optimizer=sgd", "optimizer.lr=1e30", max_steps=4, clip_norm=None, quiet=True)
    nanolm.sweep(*words, "model=bigram", "seed=1,2", max_steps=1)
    assert surroundings() == before


def test_training_yields_each_update(words: Words) -> None:
    trained = nanolm.train(*words, *DROPOUT, quiet=True, max_steps=4, eval_every=2)
    training = nanolm.training(*words, *DROPOUT, quiet=True, max_steps=4, eval_every=2)
    with pytest.raises(RunError, match="has not started"):
        _ = training.run
    seen = []
    for step in training:
        # Draws of the caller have no influence.
        torch.rand(3), np.random.rand(3)
        assert any(p.grad is not None for p in step.model.parameters())
        assert step.batch[0].inputs_BxT.shape == (4, 16)
        seen.append((step.number, step.loss, step.lr, step.grad_norm))
    rows = trained.metrics("train")
    assert [number for number, *_ in seen] == [1, 2, 3, 4]
    for place, name in enumerate(("loss", "lr", "grad_norm"), start=1):
        assert [values[place] for values in seen] == rows[name].tolist()
    assert training.run.summary.status == "completed"
    assert same_runs(trained, training.run)


def leave_by_break(training: nanolm.Training) -> None:
    for step in training:
        if step.number == 3:
            break


def divide_at_step_3(training: nanolm.Training) -> None:
    for step in training:
        _ = 1 / (3 - step.number)


def leave_by_error(training: nanolm.Training) -> None:
    with pytest.raises(ZeroDivisionError):
        divide_at_step_3(training)


def leave_with_block(training: nanolm.Training) -> None:
    with training as steps:
        iterator = iter(steps)
        for _ in range(3):
            next(iterator)


def interrupt_at_step_3(training: nanolm.Training) -> None:
    for step in training:
        if step.number == 3:
            os.kill(os.getpid(), signal.SIGINT)


def leave_by_signal(training: nanolm.Training) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt_at_step_3(training)


@pytest.mark.parametrize(
    "leave", mostly_slow([leave_by_break, leave_by_error, leave_with_block, leave_by_signal], quick=[leave_by_break])
)
def test_leaving_the_loop_saves_and_the_run_resumes_exactly(
    words: Words, leave: Callable[[nanolm.Training], None]
) -> None:
    whole = nanolm.train(*words, *DROPOUT, quiet=True, max_steps=6, eval_every=3)
    training = nanolm.training(*words, *DROPOUT, quiet=True, max_steps=6, eval_every=3)
    leave(training)
    left = training.run
    assert (left.summary.status, left.summary.step, left.step) == ("interrupted", 3, 3)
    resumed = left.resume(quiet=True)
    assert resumed.path == left.path
    assert resumed.summary.status == "completed"
    assert same_runs(whole, resumed)


def test_training_that_is_never_iterated_writes_nothing(words: Words) -> None:
    nanolm.training(*words, "model=bigram", max_steps=4).close()
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_signal_is_delivered_again_when_the_run_is_saved(words: Words) -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with sigterm_at_step(2):
            run = nanolm.train(*words, "model=bigram", quiet=True, max_steps=5)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert (run.summary.status, run.step) == ("interrupted", 2)


@pytest.mark.slow
def test_train_works_in_a_thread(words: Words) -> None:
    found = []
    thread = threading.Thread(
        target=lambda: found.append(nanolm.train(*words, "model=bigram", quiet=True, max_steps=2))
    )
    thread.start()
    thread.join()
    assert found[0].summary.status == "completed"


def test_fitted_model_has_one_step(words: Words) -> None:
    (step,) = nanolm.training(*words, "model=ngram", quiet=True)
    assert (step.number, step.lr, step.batch) == (1, 0.0, [])
    assert step.loss > 0


@pytest.mark.slow
def test_completed_run_resumed_again_is_left_as_it_is(words: Words, capsys: pytest.CaptureFixture[str]) -> None:
    run = nanolm.train(*words, "model=bigram", quiet=True, max_steps=2)
    capsys.readouterr()
    assert run.resume().summary == run.summary
    assert "nothing to do" in capsys.readouterr().err
    assert run.resume(quiet=True, max_steps=4).step == 4


@pytest.mark.slow
def test_fork_starts_a_new_run_with_other_settings(words: Words) -> None:
    run = nanolm.train(*words, "model=bigram", quiet=True, max_steps=2)
    fork = run.fork("optimizer.lr=1e-4", quiet=True, max_steps=4)
    assert fork.path != run.path
    assert fork.summary.parent is not None
    assert fork.config.optimizer.lr == 1e-4
    assert (run.summary.step, fork.summary.step) == (2, 4)


def test_sweep_returns_the_runs_of_all_jobs(words: Words) -> None:
    runs = nanolm.sweep(*words, "model=bigram", "optimizer.lr=3e-3", batch_size=[2, 4], max_steps=2)
    found = {(run.config.optimizer.lr, run.config.trainer.batch_size) for run in runs}
    assert found == {(0.003, 2), (0.003, 4)}
    again = nanolm.sweep(*words, "model=bigram", "optimizer.lr=3e-3", batch_size=4, max_steps=2)
    assert [run.path for run in again] == [runs[1].path]


@pytest.mark.slow
def test_sweep_with_a_failing_job_names_its_error(words: Words) -> None:
    (run,) = nanolm.sweep(*words, "model=bigram", "seed=1", max_steps=2)
    (run.path / "summary.json").write_text("{")
    with pytest.raises(SweepError, match="1 of 2 jobs failed") as error:
        nanolm.sweep(*words, "model=bigram", "seed=1,2", max_steps=2)
    assert "summary.json" in str(error.value)
    assert isinstance(error.value, NanolmError)
