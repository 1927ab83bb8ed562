"""One job of a sweep, run by a launcher in whatever process it chooses. It returns a result and never raises.

An error of its run is also written to error.txt in the run directory, where the progress, the summary and other shells
that share the sweep find it, whichever process or machine the job ran on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from nanolm import signals, terminal
from nanolm.compose import choices_of, import_plugins
from nanolm.config.budget import Budget, budget_of
from nanolm.config.checks import check
from nanolm.config.composed import to_config
from nanolm.config.identity import describe_changes, differing
from nanolm.config.yaml_io import load_yaml
from nanolm.errors import BusyError, DivergedError, NanolmError, RankError, explain_os_error, raise_all
from nanolm.files import disk_time, open_regular, write_text
from nanolm.runs.directory import RunDirectory, display_path
from nanolm.runs.occupancy import require_startable
from nanolm.signals import Stopped
from nanolm.sweeps.planning import JOB_FILES
from nanolm.sweeps.states import DONE, Report, State, read_job_summary, read_run
from nanolm.sweeps.stop_file import START_NO_JOB, STOP, read_stop_file, write_stop_file
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks
from nanolm.training.stop import ShouldPrune, StopRequest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nanolm.config.run import Config

# Seconds to wait for the lock of a folder, which another process may hold briefly to read the job's state.
LOCK_TIMEOUT = 0.5


@dataclasses.dataclass(frozen=True)
class SweepJob:
    """The function that Hydra's launchers call for each job. It can be pickled.

    Attributes:
        driver: the process that drives the sweep, as (host, process id); None with a sweeper that is not nanolm's.
        start_time: when the sweep started, in seconds since 1970, by the clock of its directory (`disk_time`), because
            those of the machines may differ; a job that failed later is not run again.
        deadline: time after which no job is started, by the same clock; None: no limit.
        stop_file: how the driver stops the job; None: only signals do.
        threads: number of threads of torch; None keeps the default.
        fail_fast: whether no job is started after one that failed.
        final_states: states in which a job is not run again.
        make_pruner: returns the pruner of a run, if it has one.
        config_dir: the user's own folder of YAML files, to plan further jobs.
        profile: whether each job traces a few steps with PyTorch's profiler.
    """

    driver: tuple[str, int] | None = None
    start_time: float = 0.0
    deadline: float | None = None
    stop_file: Path | None = None
    threads: int | None = None
    fail_fast: bool = False
    final_states: frozenset[State] = DONE
    make_pruner: Callable[[RunDirectory], ShouldPrune | None] | None = None
    config_dir: str | None = None
    profile: bool = False

    def __call__(self, composed: DictConfig) -> Report:
        """Run or resume a job in the folder that Hydra created for it, as `run`."""
        from hydra.core.hydra_config import HydraConfig

        def load() -> Config:
            import_plugins(list(composed.get("plugins") or []))
            return to_config(composed)

        runtime = HydraConfig.get().runtime
        return self.run(RunDirectory(display_path(runtime.output_dir)), load, choices_of(runtime.choices))

    def run(
        self, run: RunDirectory, load: Callable[[], Config], choices: dict[str, str], ranks: Ranks = SINGLE_PROCESS
    ) -> Report:
        """Run or resume a job, unless it is done or the sweep ends.

        Args:
            run: where.
            load: imports the plugins and returns the settings; its errors are those of the job.
            choices: the option chosen in each config group.
            ranks: the processes that train together; each calls this method.

        Raises:
            RankError: another rank ended or does not answer.
        """
        if ranks.run_on_main(lambda: self._is_over(run)):
            return Report(State.new)
        stop = StopRequest()
        try:
            with self._stopped_by_driver(stop), contextlib.ExitStack() as stack:
                ranks.run_on_main(lambda: _claim(run, stack))
                report = self._run_claimed(run, load, choices, stop, ranks)
        except RankError:
            raise
        except BusyError:
            report = Report(State.running)
        except NanolmError as error:
            report = Report(State.failed, error=str(error))
        except OSError as error:
            problem = explain_os_error(error, "the folder is not writable", where=str(run.path))
            report = Report(State.failed, error=str(problem))
        except Stopped as stopped:
            if not self._is_in_other_process:
                raise
            report = Report(State.interrupted, signal=stopped.number)
        if report.state is State.failed and self.fail_fast and self.stop_file is not None:
            write_stop_file(self.stop_file, START_NO_JOB)
        return report

    def _is_over(self, run: RunDirectory) -> bool:
        """Whether the sweep starts no job any more."""
        is_late = self.deadline is not None and disk_time(run.path) >= self.deadline
        return is_late or bool(read_stop_file(self.stop_file))

    @property
    def _is_in_other_process(self) -> bool:
        return self.driver is not None and self.driver != (socket.gethostname(), os.getpid())

    def _run_claimed(
        self, run: RunDirectory, load: Callable[[], Config], choices: dict[str, str], stop: StopRequest, ranks: Ranks
    ) -> Report:
        """Run a job in a folder that this process has claimed, and write its error to error.txt."""
        import torch

        try:
            config = load()
            budget = budget_of(config.trainer)
            if (before := ranks.run_on_main(lambda: self._read_finished(run, budget))) is not None:
                return before
            exit_status = self._train(config, run, choices, stop, ranks)
            report = read_run(run, budget, check_lock=False)
            return dataclasses.replace(report, signal=max(exit_status - 128, 0))
        except RankError:
            raise
        except NanolmError as error:
            state, text = State.diverged if isinstance(error, DivergedError) else State.failed, str(error)
        except Exception as error:
            # Such as an out-of-memory error or a bug in a plugin: the next job may succeed.
            state, text = State.failed, _describe(error, run)
            with contextlib.suppress(OSError), open_regular(run.log, "a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {traceback.format_exc()}")
            traceback.clear_frames(error.__traceback__)
        # On a full disk, the driver still has the report.
        with contextlib.suppress(OSError):
            if ranks.is_main:
                write_text(run.error, text + "\n")
        # Free the memory of the failed run for the next job of this process.
        gc.collect()
        torch.cuda.empty_cache()
        return Report(state, error=text)

    def _read_finished(self, run: RunDirectory, budget: Budget) -> Report | None:
        """Return the report of a job that is not run again; None, and without a former error, for one that is."""
        read_job_summary(run, budget)
        report = read_run(run, budget, check_lock=False)
        if report.state in self.final_states or _failed_since(self.start_time, run, report):
            return report
        run.error.unlink(missing_ok=True)
        return None

    def _train(
        self, config: Config, run: RunDirectory, choices: dict[str, str], stop: StopRequest, ranks: Ranks
    ) -> int:
        """Train, and return the exit status of the run."""
        import torch

        from nanolm.training.trainer import train

        raise_all(check(config))
        changes = describe_changes(differing(load_yaml(run.config), config)) if run.exists() else []
        stop.should_prune = self.make_pruner(run) if self.make_pruner else None
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        outcome = train(
            config,
            run,
            choices=run.read_summary().choices or choices,
            changes=changes,
            show_bar=False if self._is_in_other_process else None,
            quiet=True,
            ranks=ranks,
            stop=stop,
            group=run.path.absolute().parent.name,
            profile=self.profile,
        )
        return outcome.exit_status

    @contextlib.contextmanager
    def _stopped_by_driver(self, stop: StopRequest) -> Iterator[None]:
        """In a process other than the driver's, let signals and the stop file end the job after a checkpoint."""
        if not self._is_in_other_process or threading.current_thread() is not threading.main_thread():
            yield
            return

        def raise_stopped(number: int, frame: FrameType | None) -> None:
            raise Stopped(number)

        terminal.prepare()
        terminal.ignore_write_errors()
        is_ended = threading.Event()
        watcher = threading.Thread(target=_watch_stop_file, args=(self.stop_file, stop, is_ended), daemon=True)
        previous = signals.install(raise_stopped)
        watcher.start()
        try:
            yield
        finally:
            is_ended.set()
            watcher.join()
            signals.restore(previous)
            # Ctrl-C reaches every process of a terminal; a process that waits for its next job has nothing to save.
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _claim(run: RunDirectory, stack: contextlib.ExitStack) -> None:
    """Claim a folder for a job, unless it belongs to something else."""
    require_startable(run, also=JOB_FILES)
    stack.enter_context(run.claim(timeout=LOCK_TIMEOUT))


def _failed_since(start_time: float, run: RunDirectory, report: Report) -> bool:
    """Return whether another process that shares the sweep has run this job and failed."""
    return report.state is State.failed and run.error.exists() and run.error.stat().st_mtime > start_time


def _watch_stop_file(stop_file: Path | None, stop: StopRequest, is_ended: threading.Event) -> None:
    """Stop the job of this process when the stop file says so."""
    while not is_ended.wait(0.25):
        if read_stop_file(stop_file) == STOP:
            if stop.is_active:
                stop.request()
            elif not is_ended.is_set():
                # Not in training: the handler raises Stopped in the main thread.
                os.kill(os.getpid(), signal.SIGTERM)
            return


def _describe(error: Exception, run: RunDirectory) -> str:
    """Describe an error that is not nanolm's own, with the log that has its traceback."""
    with contextlib.suppress(OSError):
        if isinstance(error, OSError):
            return str(explain_os_error(error))
    return f"{type(error).__name__}: {error}".strip() + f"\n  where: {run.log}"
