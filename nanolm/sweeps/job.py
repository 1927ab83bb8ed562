"""One job of a sweep, in whatever process a launcher runs it. It answers for itself: nothing it does raises."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from nanolm import signals, terminal
from nanolm.errors import BusyError, DivergedError, NanolmError, RunError, explain_os_error, raise_all
from nanolm.files import open_regular, write_text
from nanolm.runs.directory import RunDirectory, shown
from nanolm.runs.occupancy import require_startable
from nanolm.signals import Stopped
from nanolm.sweeps.planning import JOB_FILES
from nanolm.sweeps.states import DONE, Report, State, goes_beyond, read_run, too_far

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nanolm.config.run import Config

# Is asked after each evaluation, with the step and the validation loss, whether to give a run up.
Hopeless = Callable[[int, float], bool]

# Seconds that a job waits for a folder that another process may be looking at.
GLANCE = 0.5


@dataclasses.dataclass(frozen=True)
class JobResult:
    """What a job hands back, through a pickle where it ran elsewhere.

    Attributes:
        state: how it stands now; new: it was not begun, because the sweep is to end.
        value: the best validation loss, in nats a token.
        signal: the one that interrupted it, or 0.
    """

    state: State
    folder: str
    value: float | None = None
    error: str = ""
    signal: int = 0


@dataclasses.dataclass(frozen=True)
class StopFile:
    """A file by which the process that leads a sweep reaches those that run its jobs, wherever they are.

    It says "begin nothing more" or "stop".
    """

    path: str

    def say(self, word: str) -> None:
        """Leaves a word, unless the folder has gone."""
        with contextlib.suppress(OSError):
            write_text(Path(self.path), word)

    def read(self) -> str:
        """The word, or an empty string."""
        try:
            return Path(self.path).read_text(encoding="utf-8")
        except OSError:
            return ""

    def remove(self) -> None:
        """Takes the word back."""
        with contextlib.suppress(OSError):
            Path(self.path).unlink(missing_ok=True)


BEGIN_NOTHING = "begin nothing more"
STOP = "stop"


@dataclasses.dataclass(frozen=True)
class SweepJob:
    """What Hydra calls for each job: all that a process needs to know besides the settings. It can be pickled.

    Attributes:
        leader: the process that leads the sweep, as (host, process id); None for a sweeper that is not ours.
        began: when the sweep did, in seconds since 1970: a job that failed after it is not tried again.
        stop_file: None where nobody may stop the job but by a signal.
        threads: for torch to compute with; None leaves it as it is.
        fail_fast: whether no job begins after one that failed.
        done: states that a run is left in.
        watch: makes, for a run directory, what is asked after each evaluation whether to give the run up.
        config_dir: the user's own folder of YAML files, for whoever plans further jobs.
    """

    leader: tuple[str, int] | None = None
    began: float = 0.0
    stop_file: StopFile | None = None
    threads: int | None = None
    fail_fast: bool = False
    done: frozenset[State] = DONE
    watch: Callable[[RunDirectory], Hopeless | None] | None = None
    config_dir: str | None = None

    def __call__(self, composed: DictConfig) -> JobResult:
        """Runs a job in the folder that Hydra made for it, or goes on with it, or leaves it as it is."""
        from hydra.core.hydra_config import HydraConfig

        run = RunDirectory(shown(HydraConfig.get().runtime.output_dir))
        if self.stop_file is not None and self.stop_file.read():
            return JobResult(State.new, str(run.path))
        try:
            require_startable(run, also=JOB_FILES)
        except RunError as error:
            # The folder is not a job's: nothing is written into it.
            return self._reported(JobResult(State.failed, str(run.path), error=str(error)))
        try:
            with self._listening(), run.claim(patience=GLANCE):
                result = self._claimed(composed, run)
        except BusyError:
            return JobResult(State.running, str(run.path))
        except NanolmError as error:
            result = JobResult(State.failed, str(run.path), error=str(error))
        except OSError as error:
            problem = explain_os_error(error, "the folder cannot be written", where=str(run.path))
            result = JobResult(State.failed, str(run.path), error=str(problem))
        except Stopped as stopped:
            if not self._is_elsewhere:
                raise
            return JobResult(State.interrupted, str(run.path), signal=stopped.number)
        return self._reported(result)

    def _reported(self, result: JobResult) -> JobResult:
        """The result; after one that failed, no other job begins where the sweep is to fail fast."""
        if result.state is State.failed and self.fail_fast and self.stop_file is not None:
            self.stop_file.say(BEGIN_NOTHING)
        return result

    @property
    def _is_elsewhere(self) -> bool:
        """Whether this is another process than the one that leads the sweep."""
        import socket

        return self.leader is not None and self.leader != (socket.gethostname(), os.getpid())

    def _claimed(self, composed: DictConfig, run: RunDirectory) -> JobResult:
        """The job, in a folder that no other process writes to. Its errors stay in error.txt."""
        try:
            config = _config_of(composed)
            steps = config.trainer.max_steps
            report = read_run(run, steps, looks_at_lock=False)
            if goes_beyond(summary := run.read_summary(), steps):
                raise too_far(run, summary, steps)
            if report.state in self.done or _failed_since(self.began, run, report):
                return JobResult(report.state, str(run.path), report.value, report.error)
            run.error.unlink(missing_ok=True)
            exit_status = self._train(config, run)
            report = read_run(run, steps, looks_at_lock=False)
            return JobResult(report.state, str(run.path), report.value, signal=max(exit_status - 128, 0))
        except NanolmError as error:
            state, text = State.diverged if isinstance(error, DivergedError) else State.failed, str(error)
        except Exception as error:
            # Such as a GPU without memory left, or a plugin's mistake: the next job may do better.
            state, text = State.failed, _in_words(error, run)
            _note_traceback(run)
            traceback.clear_frames(error.__traceback__)
        write_text(run.error, text + "\n")
        _free_memory()
        return JobResult(state, str(run.path), error=text)

    def _train(self, config: Config, run: RunDirectory) -> int:
        """Trains; returns the exit status of the run."""
        import torch
        from hydra.core.hydra_config import HydraConfig

        from nanolm.compose import choices_of
        from nanolm.config.checks import check
        from nanolm.config.identity import describe_changes, differing
        from nanolm.config.yaml_io import load_yaml
        from nanolm.training.trainer import train

        raise_all(check(config))
        changes = []
        if run.exists():
            changes = describe_changes(differing(load_yaml(run.config), config))
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        outcome = train(
            config,
            run,
            choices=run.read_summary().choices or choices_of(HydraConfig.get().runtime.choices),
            changes=changes,
            show_bar=False if self._is_elsewhere else None,
            quiet=True,
            should_prune=self.watch(run) if self.watch else None,
            group=run.path.absolute().parent.name,
        )
        return outcome.exit_status

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """In a process of its own: signals, and the word of the one who leads, end the job behind a checkpoint."""
        if not self._is_elsewhere or threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            raise Stopped(number)

        terminal.prepare()
        terminal.ignore_write_errors()
        before = signals.install(stop)
        ended = threading.Event()
        watcher = threading.Thread(target=_obey, args=(self.stop_file, ended), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            signals.restore(before)
            # Ctrl-C reaches every process of a terminal; one that waits for its next job has nothing to save.
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _config_of(composed: DictConfig) -> Config:
    from nanolm.compose import import_plugins
    from nanolm.config.composed import to_config

    import_plugins(list(composed.get("plugins") or []))
    return to_config(composed)


def _failed_since(began: float, run: RunDirectory, report: Report) -> bool:
    """Whether another process that shares the sweep has tried this job and failed."""
    return report.state is State.failed and run.error.exists() and run.error.stat().st_mtime > began


def _obey(stop_file: StopFile | None, ended: threading.Event) -> None:
    """Ends the job of this process when the one who leads says so."""
    from nanolm.training.stop import StopRequest

    while not ended.wait(0.25):
        if stop_file is not None and stop_file.read() == STOP:
            if StopRequest.current is not None:
                StopRequest.current.ask()
            elif not ended.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
            return


def _in_words(error: Exception, run: RunDirectory) -> str:
    """What a job says of an error that is not ours."""
    with contextlib.suppress(OSError):
        if isinstance(error, OSError):
            return str(explain_os_error(error))
    return f"{type(error).__name__}: {error}".strip() + f"\n  where: {run.log}"


def _note_traceback(run: RunDirectory) -> None:
    with open_regular(run.log, "a") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {traceback.format_exc()}")


def _free_memory() -> None:
    """What a failed run held, so that the next one of this process has it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
