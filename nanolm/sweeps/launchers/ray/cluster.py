"""The jobs of a sweep as tasks of a Ray cluster.

It runs in a process of its own: see nanolm.sweeps.launchers.ray.process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from nanolm.errors import BusyError, NanolmError, explain_os_error
from nanolm.sweeps.handover import LostJob, PlannedJob
from nanolm.sweeps.launchers.engine import Ended, Request
from nanolm.sweeps.launchers.ray import tasks as ray_tasks
from nanolm.sweeps.launchers.ray.archive import pack, receive
from nanolm.sweeps.launchers.ray.nodes import LOST_NODE, NODE_INTERVAL, alive_nodes, describe_error, items_of, on_node
from nanolm.sweeps.launchers.ray.settings import slots_of
from nanolm.sweeps.launchers.ray.tasks import Cargo, NodeTask, Started
from nanolm.sweeps.launchers.ray.texts import Text, find_text, path_settings, read_chunks
from nanolm.sweeps.states import Report, State
from nanolm.sweeps.stop_file import STOP, write_stop_file

# Seconds to wait for an event of a job before new jobs are accepted.
INTERVAL = 0.1

# Tasks that take no resources of their own.
_stop_job = ray.remote(num_cpus=0, max_retries=2)(ray_tasks.stop_job)
_collect = ray.remote(num_cpus=0, max_retries=0, num_returns="streaming")(ray_tasks.collect)


@dataclasses.dataclass
class Running:
    """A job that Ray has.

    Attributes:
        claim: holds the lock of the run while the job runs on another disk.
        paths: the settings of the dataset that may have other values there.
        started: where it runs; None: it waits.
        is_stopping: whether it was told to stop.
    """

    request: Request
    claim: contextlib.ExitStack
    paths: dict[str, str] = dataclasses.field(default_factory=dict)
    started: Started | None = None
    is_stopping: bool = False


class Cluster:
    """The jobs of a sweep on the cluster that this process is connected to.

    Args:
        n_cpus, n_gpus: of each job.
        max_retries: how often a lost job is started again before it is reported.
    """

    def __init__(self, task: NodeTask, n_cpus: float, n_gpus: float, max_retries: int) -> None:
        self._task = task
        self._n_cpus, self._n_gpus, self._max_retries = n_cpus, n_gpus, max_retries
        self._run = self._new_task()
        self._shared_task = ray.put(task)
        self._waiting: list[Request] = []
        # By the generator of the events of each job.
        self._running: dict[Any, Running] = {}
        self._ended: list[Ended] = []
        self._n_lost: dict[int, int] = {}
        self._is_cancelled = False
        self._is_stopping = False
        self._next_check = 0.0
        # By the value of the setting: each text, and the references to its chunks.
        self._texts: dict[str, tuple[Text, tuple[Any, ...] | None] | None] = {}

    @property
    def is_busy(self) -> bool:
        """Whether there are jobs, or ends of jobs to report."""
        return bool(self._waiting or self._running or self._ended)

    def n_slots(self) -> int:
        """How many jobs run at a time at most."""
        return sum(slots_of(node, self._n_cpus, self._n_gpus) for node in alive_nodes())

    def start(self, requests: Sequence[Request]) -> None:
        """Queue jobs."""
        self._waiting = sorted([*self._waiting, *requests], key=lambda request: request.number)

    def step(self) -> list[Ended]:
        """Give jobs to Ray, handle the next event, and return the jobs that have ended."""
        self._submit()
        self._drop_lost()
        if self._running:
            ready, _ = ray.wait(list(self._running), timeout=0 if self._ended else INTERVAL, fetch_local=False)
            for generator in ready:
                self._handle(generator)
        found, self._ended = self._ended, []
        return found

    def cancel_waiting(self) -> None:
        """Start none of the jobs that wait, here or in Ray."""
        self._is_cancelled = True
        self._ended += [Ended(request.number, Report(State.new)) for request in self._waiting]
        self._waiting = []
        for generator, running in self._running.items():
            if running.started is None:
                ray.cancel(generator, force=False)

    def stop_running(self) -> None:
        """Let the jobs that run save a checkpoint and end."""
        self._is_stopping = True
        if self._task.is_shared and self._task.function.stop_file is not None:
            write_stop_file(self._task.function.stop_file, STOP)
        for running in self._running.values():
            self._stop(running)

    def close(self) -> None:
        """Stop all jobs, and wait until they have ended."""
        self.cancel_waiting()
        self.stop_running()
        while self._running:
            self.step()
        if (stop_file := self._task.function.stop_file) is not None:
            # If the driver is dead.
            with contextlib.suppress(OSError):
                stop_file.unlink(missing_ok=True)

    def _new_task(self) -> Any:
        """Return the function of the jobs as a task.

        Ray places the tasks of a function one after another. Those of another function do not wait for a lost node.
        """
        return ray.remote(
            num_cpus=self._n_cpus,
            num_gpus=self._n_gpus,
            max_retries=0,
            num_returns="streaming",
            scheduling_strategy="SPREAD",
        )(ray_tasks.run_job)

    def _submit(self) -> None:
        """Give Ray as many jobs as can run, and as many to wait, so that a cluster that grows by demand grows."""
        n_free = 2 * max(1, self.n_slots()) - len(self._running) if self._waiting else 0
        while self._waiting and n_free > 0:
            n_free -= 1
            self._give(self._waiting.pop(0))

    def _give(self, request: Request) -> None:
        claim = contextlib.ExitStack()
        try:
            cargo = Cargo()
            if not self._task.is_shared:
                # Other drivers leave the job alone.
                claim.enter_context(self._task.run_of(request).claim())
                cargo = self._cargo(request)
        except BusyError:
            self._ended.append(Ended(request.number, Report(State.running)))
            return
        except (NanolmError, OSError) as error:
            claim.close()
            problem = error if isinstance(error, NanolmError) else explain_os_error(error)
            self._ended.append(Ended(request.number, Report(State.failed, error=str(problem))))
            return
        paths = {name: text.value for name, (text, _) in cargo.texts.items()}
        generator = self._run.remote(self._shared_task, request, cargo)
        self._running[generator] = Running(request, claim, paths)

    def _cargo(self, request: Request) -> Cargo:
        """Return the run so far and the texts of a job."""
        run = self._task.run_of(request)
        chunks = tuple(ray.put(chunk) for chunk in pack(run)) if run.exists() else ()
        dataset = PlannedJob.parse(request.overrides).load().dataset
        texts = {name: text for name, value in path_settings(dataset).items() if (text := self._text(value))}
        return Cargo(chunks, texts)

    def _text(self, value: str) -> tuple[Text, tuple[Any, ...] | None] | None:
        if value not in self._texts:
            text = find_text(value)
            chunks = tuple(map(ray.put, read_chunks(text))) if text is not None and text.is_small else None
            self._texts[value] = None if text is None else (text, chunks)
        return self._texts[value]

    def _handle(self, generator: Any) -> None:
        """Handle an event of a job."""
        running = self._running[generator]
        result: Report | LostJob
        try:
            item = ray.get(next(generator))
            if isinstance(item, Started):
                running.started = item
                if self._is_stopping:
                    self._stop(running)
                return
            result = item
        except StopIteration:
            result = LostJob("it ended without a result")
        except TaskCancelledError:
            result = Report(State.interrupted if running.started else State.new)
        except RayTaskError as error:
            result = Report(State.failed, error=describe_error(error))
        except RayError as error:
            result = LostJob(describe_error(error))
        del self._running[generator]
        problem = self._fetch(running)
        if problem and not isinstance(result, LostJob):
            result = LostJob(problem)
        running.claim.close()
        self._finish(running.request, result)

    def _drop_lost(self) -> None:
        """Give up the jobs of nodes that the cluster has lost: Ray waits minutes for a node without a network."""
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + NODE_INTERVAL
        alive = {node.key for node in alive_nodes()}
        nodes = {running.started.node for running in self._running.values() if running.started is not None}
        if nodes <= alive:
            return
        # Those that wait in Ray may wait for the node, too.
        self._run = self._new_task()
        for generator, running in list(self._running.items()):
            if running.started is not None and running.started.node in alive:
                continue
            del self._running[generator]
            running.claim.close()
            if running.started is not None:
                self._finish(running.request, LostJob(LOST_NODE))
                continue
            ray.cancel(generator, force=False)
            if self._is_cancelled:
                self._ended.append(Ended(running.request.number, Report(State.new)))
            else:
                self.start([running.request])

    def _finish(self, request: Request, result: Report | LostJob) -> None:
        """Report the end of a job, or start it again."""
        if isinstance(result, LostJob):
            self._n_lost[request.number] = self._n_lost.get(request.number, 0) + 1
            if self._n_lost[request.number] <= self._max_retries and not self._is_cancelled:
                self.start([request])
                return
        self._n_lost.pop(request.number, None)
        self._ended.append(Ended(request.number, result))

    def _fetch(self, running: Running) -> str:
        """Fetch the run of a job that ran in a folder of its node; return why that failed, or an empty string."""
        if running.started is None or running.started.folder is None:
            return ""
        task = on_node(_collect, running.started.node)
        generator = task.remote(self._shared_task, running.request, running.started.folder, running.paths)
        try:
            receive(items_of(generator, running.started.node), self._task.run_of(running.request))
        except RayError as error:
            return f"its run cannot be fetched: {describe_error(error)}"
        except NanolmError as error:
            return f"its run cannot be fetched: {error.found}"
        except OSError as error:
            return f"its run cannot be written: {error.strerror or error}"
        return ""

    def _stop(self, running: Running) -> None:
        started = running.started
        if started is not None and started.folder is not None and not running.is_stopping:
            running.is_stopping = True
            on_node(_stop_job, started.node).remote(started.folder)
