"""Training from Python: to the end, step by step, and as a sweep."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Self

from nanolm import terminal
from nanolm.api.run import Run, load
from nanolm.api.surroundings import Generators, unchanged
from nanolm.compose import ComposedCommand, compose_command, format_override, to_hydra_syntax, warnings_about
from nanolm.errors import NanolmError, RunError, SettingsError, SweepError
from nanolm.runs.directory import RunDirectory
from nanolm.training.destination import resumed_config
from nanolm.training.launch import claimed, nothing_to_do
from nanolm.training.step import Step
from nanolm.training.stop import StopRequest
from nanolm.training.trainer import training as train_steps

Steps = Generator[Step, bool | None, None]


class Training(Iterable[Step]):
    """A run that is trained by iterating over it.

    Nothing is written before the first step. Leaving a `for` loop over it ends the run as Ctrl-C does, whether by
    `break`, by `return` or by an exception: the step is logged, evaluated if it is due, and saved. The same happens at
    the end of a `with` block, and by `close()`. A run that was left can be resumed.

    Random numbers that the loop draws from the global generators of PyTorch and NumPy have no influence on the run.

    Attributes:
        error: why the run could not be saved when its loop was left; None otherwise.
    """

    def __init__(self, command: ComposedCommand, *, quiet: bool = False) -> None:
        """Prepare to train what a composed command line describes."""
        self.error: NanolmError | None = None
        self._directory: list[RunDirectory] = []
        self._steps = _train(command, quiet, self._directory)
        self._generators = Generators()
        self._has_started = False

    @property
    def run(self) -> Run:
        """The run so far; after the last step, with its result.

        Raises:
            RunError: no step was made yet.
        """
        if not self._directory:
            raise RunError("the run has not started", where="nanolm.training", hint="iterate over it first")
        return load(self._directory[0].path)

    def __iter__(self) -> Iterator[Step]:
        """Yield each update, until the last one or until the loop is left."""
        try:
            while True:
                try:
                    with self._resumed():
                        step = next(self._steps)
                except StopIteration:
                    return
                yield step
        except GeneratorExit:
            # Python ignores errors in a generator that is left, except for printing their traceback.
            try:
                self.close()
            except NanolmError as error:
                self.error = error
                terminal.say(f"nanolm: {error}")

    def finish(self) -> Run:
        """Train to the end, and return the run."""
        with self._resumed():
            for _ in self._steps:
                pass
        return self.run

    def close(self) -> None:
        """End the run after the step that was yielded last: log it, evaluate it if it is due, and save it.

        Raises:
            DiskError: it cannot be saved.
        """
        if self._directory:
            with self._resumed():
                try:
                    self._steps.send(True)
                except StopIteration:
                    return
        self._steps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _resumed(self) -> AbstractContextManager[None]:
        """Let the run use the global random generators, which otherwise are those of the caller."""
        is_first, self._has_started = not self._has_started, True
        return _exchanged(self._generators, with_python=is_first)


@contextmanager
def _exchanged(generators: Generators, with_python: bool) -> Iterator[None]:
    """Use other random generators; Python's own is restored at the end, if nanolm seeds it."""
    python = random.getstate() if with_python else None
    generators.exchange()
    try:
        yield
    finally:
        generators.exchange()
        if python is not None:
            random.setstate(python)


def training(*overrides: str, config_dir: str | None = None, quiet: bool = False, **trainer: object) -> Training:
    """Train step by step: `for step in nanolm.training("model=gpt"): ...`.

    Each `step` has its `number`, `loss`, `lr`, `model`, `batch` and `grad_norm` (`nanolm.Step`). Arguments and errors
    are those of `train`; mistakes in the command line are raised at once, all others by the first step.

    Example:
        >>> for step in nanolm.training("model=bigram", "logger=none", max_steps=20, quiet=True):
        ...     if step.number == 5:
        ...         break
        >>> step.number
        5
    """
    return Training(_compose(overrides, config_dir, trainer), quiet=quiet)


def train(*overrides: str, config_dir: str | None = None, quiet: bool = False, **trainer: object) -> Run:
    """Train a model, or resume a run (`resume=RUN`), and return the run.

    Ctrl-C ends the run after the current step and a checkpoint, and then raises KeyboardInterrupt; a second one does
    not wait. Any other signal is delivered again once the run is saved.

    Args:
        overrides: the words of `nanolm train`, such as "model=gpt".
        config_dir: your own folder of YAML files.
        quiet: write messages to train.log only.
        trainer: settings of the trainer: `max_steps=500` is "trainer.max_steps=500".

    Raises:
        NanolmError: as the command reports it; see nanolm.errors.

    Example:
        >>> run = nanolm.train("model=bigram", "logger=none", max_steps=20, quiet=True)
        >>> run.summary.status
        'completed'
    """
    return training(*overrides, config_dir=config_dir, quiet=quiet, **trainer).finish()


def sweep(*overrides: str, config_dir: str | None = None, **trainer: object) -> list[Run]:
    """Train a run for every combination of values, and return the runs; those that are done are not trained again.

    Args:
        overrides: the words of `nanolm train -m`, such as "optimizer.lr=1e-3,3e-3".
        config_dir: your own folder of YAML files.
        trainer: settings of the trainer; a list or a tuple is several values.

    Raises:
        SweepError: a job failed; the other jobs have been trained.
        NanolmError: the command line has mistakes, and nothing was trained.

    Example:
        >>> runs = nanolm.sweep("model=bigram", "logger=none", "seed=1,2", max_steps=20)
        run in outputs/sweep ... 2 jobs: 2 completed ...
        >>> [run.config.seed for run in runs]
        [1, 2]
    """
    from nanolm.compose.hydra_commands import parse_flags, run_sweep
    from nanolm.sweeps.driver import SweepResult
    from nanolm.sweeps.job import SweepJob

    words = [*overrides, *_trainer_overrides(trainer, has_many=True)]
    _require_overrides(words)
    flags = parse_flags(["--multirun", *(["--config-dir", config_dir] if config_dir else []), *words])
    with unchanged(), _exchanged(Generators(), with_python=True):
        command = compose_command(flags.overrides, config_dir, multirun=True)
        _say_warnings(command, config_dir)
        job = SweepJob(config_dir=config_dir, profile=command.launch.profile)
        result = run_sweep(flags, command.sweep_directory, job)
    if not isinstance(result, SweepResult):
        raise SettingsError(
            "the sweeper is not one of nanolm's, and does not say which runs it has trained",
            where="hydra/sweeper",
            hint="use hydra/sweeper=grid or optuna, or `nanolm train -m` and nanolm.load",
        )
    if result.signal:
        signal.raise_signal(result.signal)
    if result.errors:
        raise SweepError(
            f"{len(result.errors)} of {len(result.runs)} jobs failed:\n" + "\n".join(dict.fromkeys(result.errors)),
            where=str(command.sweep_directory),
            hint="the same call again trains what is missing",
        )
    return [load(path) for path in result.runs]


def _compose(overrides: Iterable[str], config_dir: str | None, trainer: dict[str, object]) -> ComposedCommand:
    """Compose a command line, with the errors of `nanolm train`."""
    words = [*overrides, *_trainer_overrides(trainer)]
    _require_overrides(words)
    with unchanged():
        words = to_hydra_syntax(words)
        command = compose_command(words, config_dir, saved=resumed_config(words))
    if command.launch.dry_run:
        hint = "leave it out, or use the command: nanolm train ... dry_run=true"
        raise SettingsError("dry_run=true trains no run", where="dry_run", hint=hint)
    _say_warnings(command, config_dir)
    return command


def _trainer_overrides(settings: dict[str, object], has_many: bool = False) -> list[str]:
    def text(value: object) -> str:
        if has_many and isinstance(value, list | tuple):
            return ",".join(map(format_override, value))
        return format_override(value)

    return [f"trainer.{name}={text(value)}" for name, value in settings.items()]


def _require_overrides(words: Iterable[object]) -> None:
    for word in words:
        if not isinstance(word, str) or word.startswith("-"):
            hint = 'settings are strings: "optimizer.lr=1e-3"; nanolm.sweep is `nanolm train -m`'
            raise SettingsError(f"{word!r} is not an override", where="the arguments", hint=hint)


def _say_warnings(command: ComposedCommand, config_dir: str | None) -> None:
    for warning in warnings_about(command, config_dir):
        terminal.say(f"nanolm: {warning}")


def _train(command: ComposedCommand, quiet: bool, found: list[RunDirectory]) -> Steps:
    """Train what a command line describes; `found` receives the directory of the run."""
    stop = StopRequest(on_repeated=signal.raise_signal)
    with unchanged(), claimed(command) as (run, start, ranks):
        found.append(RunDirectory(os.path.abspath(run.path)))  # noqa: PTH100  of a folder that may be left
        if start.completed_step is not None:
            if ranks.is_main:
                terminal.say(nothing_to_do(run, start))
            return
        yield from train_steps(
            start.config,
            run,
            choices=start.choices,
            changes=start.changes,
            quiet=quiet,
            ranks=ranks,
            stop=stop,
            parent=start.parent,
            profile=command.launch.profile,
            asked=command.given if start.is_from_run else None,
        )
    if stop.signal:
        signal.raise_signal(stop.signal)
