"""A Slurm of one machine: sbatch, srun, squeue, sacct, scancel and scontrol as far as nanolm and submitit use them.

`install` puts the programs into a folder. Jobs really run, as subprocesses with Slurm's environment variables, under
a manager process that sbatch starts. Every call is recorded, and `Cluster` makes things happen to jobs. This file runs
as a program too, and imports nothing else for that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PROGRAMS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")
PARTITIONS = ("debug", "gpu")
LONGEST = 7 * 24 * 60
NODE = "node1"
# Seconds that a job has between SIGTERM and SIGKILL when it is cancelled or preempted.
GRACE = 30.0
INTERVAL = 0.02
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


@dataclasses.dataclass
class Cluster:
    """The fake Slurm of a test.

    Attributes:
        folder: its state: calls.jsonl, and a folder of each job.
        programs: what belongs on the PATH.
    """

    folder: Path

    @property
    def programs(self) -> Path:
        return self.folder / "bin"

    def calls(self, program: str) -> list[list[str]]:
        """The arguments of each call of a program."""
        path = self.folder / "calls.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row["arguments"] for row in rows if row["program"] == program]

    def scripts(self) -> list[str]:
        """The scripts that sbatch was given."""
        return [path.read_text() for path in sorted(self.folder.glob("script-*.sh"), key=_number)]

    def jobs(self) -> dict[str, dict[str, Any]]:
        """The state of each job by its id."""
        return {path.parent.name: _read(path) for path in sorted(self.folder.glob("job-*/state.json"))}

    def states(self) -> list[str]:
        return [job["state"] for job in self.jobs().values()]

    def processes(self, job: str) -> list[int]:
        """The processes that srun started for a job."""
        path = self.folder / job / "tasks"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def order(self, job: str, name: str) -> None:
        """Let something happen to a job: hold, release, preempt, preempt_at_once, fail_node, cut_node or lose_node."""
        (self.folder / job / name).touch()

    def configure(self, **settings: Any) -> None:
        """Set how long a minute takes (`minute`), the node's number of jobs (`n_at_once`), or `is_down`."""
        _write(self.folder / "settings.json", {**_settings(self.folder), **settings})

    def stop(self) -> None:
        """End all jobs and managers."""
        self.configure(is_over=True)
        for path in self.folder.glob("manager-*[0-9]"):
            deadline = time.monotonic() + 20
            while _is_alive(int(path.read_text())) and time.monotonic() < deadline:
                time.sleep(INTERVAL)


def install(folder: Path) -> Cluster:
    """Create the programs of a fake Slurm."""
    cluster = Cluster(folder)
    cluster.programs.mkdir(parents=True)
    for name in PROGRAMS:
        program = cluster.programs / name
        call = [sys.executable, "-S", "-E", __file__, str(folder), name]
        program.write_text(f'#!/bin/sh\nexec {shlex.join(call)} "$@"\n')
        program.chmod(0o755)
    cluster.configure(minute=60.0, n_at_once=64, is_down=False, is_over=False, has_accounting=True)
    return cluster


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "settings.json"
    return _read(path) if path.exists() else {}


def _number(path: Path) -> int:
    return int(re.findall(r"\d+", path.name)[0])


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _write(path: Path, content: dict[str, Any]) -> None:
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(content))
    new.replace(path)


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# The programs.


def main(folder: Path, program: str, arguments: list[str]) -> int:
    """Record a call and run a program."""
    if program == "manage":
        Manager(folder, arguments[0]).run()
        return 0
    with _locked(folder), (folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps({"program": program, "arguments": arguments, "time": time.time()}) + "\n")
    if program != "srun" and _settings(folder)["is_down"]:
        print(f"{program}: error: Unable to contact slurm controller (connect failure)", file=sys.stderr)
        return 1
    return {"sbatch": sbatch, "srun": srun, "squeue": squeue, "sacct": sacct, "scancel": scancel, "scontrol": scontrol}[
        program
    ](folder, arguments)


def _options(lines: Sequence[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        name, _, value = line.partition("=")
        found[name.removeprefix("--")] = value
    return found


def sbatch(folder: Path, arguments: list[str]) -> int:
    script = Path(arguments[-1]).read_text()
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    options = _options([word for line in lines for word in shlex.split(line)])
    problem = ""
    if options.get("partition", "debug") not in PARTITIONS:
        problem = (
            f"sbatch: error: invalid partition specified: {options['partition']}\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified"
        )
    elif int(options["time"]) > LONGEST:
        problem = (
            "sbatch: error: Batch job submission failed: "
            "Requested time limit is invalid (missing or exceeds some limit)"
        )
    if problem:
        print(problem, file=sys.stderr)
        return 1
    with _locked(folder):
        number = max(map(_number, folder.glob("script-*.sh")), default=100) + 1
        copy = folder / f"script-{number}.sh"
        copy.write_text(script)
    last = re.match(r"0-(\d+)", options.get("array", ""))
    for element in range(int(last[1]) + 1) if last else [None]:
        job = folder / f"job-{number}" if element is None else folder / f"job-{number}_{element}"
        job.mkdir()
        _write(job / "state.json", {"state": "PENDING", "reason": "Priority", "restarts": 0, "exit": "0:0", "node": ""})
    manager = [sys.executable, "-S", "-E", __file__, str(folder), "manage", str(number)]
    nothing = subprocess.DEVNULL
    with (folder / f"manager-{number}.log").open("w") as log:
        process = subprocess.Popen(manager, start_new_session=True, stdin=nothing, stdout=nothing, stderr=log)
    (folder / f"manager-{number}").write_text(str(process.pid))
    print(f"Submitted batch job {number}")
    return 0


def _selected(folder: Path, jobs: Sequence[str]) -> list[Path]:
    """The folders of jobs; the id of an array stands for all jobs in it."""
    return [
        path
        for path in sorted(folder.glob("job-*"))
        if any(path.name in (f"job-{job}",) or path.name.startswith(f"job-{job}_") for job in jobs)
    ]


def squeue(folder: Path, arguments: list[str]) -> int:
    options = _options(arguments)
    assert options["format"] == "%i|%T|%r"
    assert "array" in options
    found = _selected(folder, options["jobs"].split(","))
    if not found:
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        return 1
    for path in found:
        state = _read(path / "state.json")
        if not (path / "forgotten").exists():
            print(f"{path.name.removeprefix('job-')}|{state['state']}|{state['reason']}")
    return 0


def sacct(folder: Path, arguments: list[str]) -> int:
    if not _settings(folder)["has_accounting"]:
        print("Slurm accounting storage is disabled", file=sys.stderr)
        return 1
    options = _options(arguments)
    for path in _selected(folder, [options["jobs"]]):
        state = _read(path / "state.json")
        name = "CANCELLED by 1000" if state["state"] == "CANCELLED" else state["state"]
        print(f"{name}|{state['node'] or 'None assigned'}")
    return 0


def scancel(folder: Path, arguments: list[str]) -> int:
    options = _options([argument for argument in arguments if argument.startswith("--")])
    for path in _selected(folder, [argument for argument in arguments if not argument.startswith("--")]):
        if options.get("state") in (None, _read(path / "state.json")["state"]):
            (path / "cancel").touch()
    return 0


def scontrol(folder: Path, arguments: list[str]) -> int:
    command, job = arguments
    assert command == "requeue"
    (folder / f"job-{job}" / "requeue").touch()
    return 0


def srun(folder: Path, arguments: list[str]) -> int:
    """Start the processes of a job and wait for them."""
    first = next(
        at for at, word in enumerate(arguments) if not word.startswith("-") and arguments[at - 1] not in VALUED
    )
    options = dict(itertools.pairwise(arguments[:first]))
    command = arguments[first:]
    environment = os.environ
    array, element = environment.get("SLURM_ARRAY_JOB_ID", ""), environment.get("SLURM_ARRAY_TASK_ID", "")
    job = folder / (f"job-{array}_{element}" if array else f"job-{environment['SLURM_JOB_ID']}")
    n_tasks, n_nodes = int(environment["SLURM_NTASKS"]), int(environment["SLURM_JOB_NUM_NODES"])
    tasks = []
    for rank in range(n_tasks):
        names = {"%A": array, "%a": element, "%j": environment["SLURM_JOB_ID"], "%t": str(rank)}
        own = {
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank % (n_tasks // n_nodes)),
            "SLURM_NODEID": str(rank // (n_tasks // n_nodes)),
        }
        logs = [options["--output"], options["--error"]]
        for mark, value in names.items():
            logs = [log.replace(mark, value) for log in logs]
        with Path(logs[0]).open("a") as out, Path(logs[1]).open("a") as err:
            task = subprocess.Popen(command, env={**environment, **own}, stdout=out, stderr=err, start_new_session=True)
        tasks.append(task)
    (job / "tasks").write_text("\n".join(str(task.pid) for task in tasks))
    while any(task.poll() is None for task in tasks):
        if "--kill-on-bad-exit=1" in arguments and any(task.poll() for task in tasks):
            for task in tasks:
                task.kill()
        time.sleep(INTERVAL)
    worst = max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks)
    if worst > 128:
        print(f"srun: error: {NODE}: task 0: Killed", file=sys.stderr)
    return worst


VALUED = ("--output", "--error")


class Manager:
    """Runs the jobs of a submission."""

    def __init__(self, folder: Path, number: str) -> None:
        self.folder = folder
        script = (folder / f"script-{number}.sh").read_text()
        lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
        self.options = _options([word for line in lines for word in shlex.split(line)])
        self.number = number
        self.jobs = [Running(self, path) for path in _selected(folder, [number])]
        limit = re.search(r"%(\d+)", self.options.get("array", ""))
        self.parallel = int(limit[1]) if limit else 1
        self.settings = _settings(folder)

    def run(self) -> None:
        while not all(job.state["state"] in FINAL for job in self.jobs):
            self.settings = _settings(self.folder)
            for job in self.jobs:
                job.step()
            if self.settings["is_over"]:
                for job in self.jobs:
                    job.kill()
                return
            time.sleep(INTERVAL)

    def has_room(self) -> bool:
        own = sum(job.process is not None for job in self.jobs)
        everywhere = sum(_read(path)["state"] == "RUNNING" for path in self.folder.glob("job-*/state.json"))
        return own < self.parallel and everywhere < self.settings["n_at_once"]


class Running:
    """A job and what happens to it."""

    def __init__(self, manager: Manager, path: Path) -> None:
        self.manager = manager
        self.path = path
        self.state = _read(path / "state.json")
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.ends: tuple[float, str] | None = None
        self.is_announced = False
        self.is_requeued = False

    def note(self, state: str, reason: str = "None", **more: Any) -> None:
        self.state = {**self.state, "state": state, "reason": reason, **more}
        _write(self.path / "state.json", self.state)

    def take(self, name: str) -> bool:
        """Whether something was ordered; it happens once."""
        try:
            (self.path / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def signal(self, number: int) -> None:
        for line in (self.path / "tasks").read_text().split() if (self.path / "tasks").exists() else []:
            with contextlib.suppress(OSError):
                os.killpg(int(line), number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def step(self) -> None:
        if self.state["state"] in FINAL:
            return
        if self.process is None:
            if self.take("cancel"):
                self.note("CANCELLED")
            elif (self.path / "hold").exists():
                self.note("PENDING", (self.path / "hold").read_text() or "JobHeldUser")
            elif self.manager.has_room():
                self.start()
            return
        status = self.process.poll()
        if self.take("requeue"):
            self.is_requeued = True
            self.ends = (time.monotonic() + 5, "CANCELLED")
        if self.take("cancel"):
            self.note("COMPLETING")
            self.terminate("CANCELLED")
        if self.take("preempt"):
            self.terminate("PREEMPTED")
        if self.take("preempt_at_once"):
            self.is_requeued = True
            self.note("COMPLETING")
            self.terminate("PREEMPTED")
        if self.take("fail_node"):
            self.kill()
            self.is_requeued = "requeue" in self.manager.options
            self.finish("NODE_FAIL")
            return
        if self.take("cut_node"):
            # Seen through a cut network, the processes of the job are stopped.
            self.signal(signal.SIGSTOP)
            self.is_requeued = "requeue" in self.manager.options
            self.finish("NODE_FAIL")
            return
        if self.take("lose_node"):
            self.kill()
            self.finish("NODE_FAIL")
            return
        if status is not None:
            self.finish(self.ends[1] if self.ends else "FAILED" if status else "COMPLETED", status)
        elif self.ends and time.monotonic() > self.ends[0]:
            self.kill()
            self.finish(self.ends[1])
        else:
            self.watch_time()

    def watch_time(self) -> None:
        minute = self.manager.settings["minute"]
        limit = int(self.manager.options["time"]) * minute
        name, _, seconds = self.manager.options["signal"].partition("@")
        passed = time.monotonic() - self.started
        is_preempted = self.ends is not None and self.ends[1] == "PREEMPTED" and self.state["state"] == "RUNNING"
        if not self.is_announced and (passed > limit - int(seconds) * minute / 60 or is_preempted):
            self.is_announced = True
            self.signal(getattr(signal, f"SIG{name}"))
        if passed > limit and not self.ends:
            self.note("COMPLETING")
            self.terminate("TIMEOUT")

    def terminate(self, state: str) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        self.ends = (time.monotonic() + GRACE, state)

    def start(self) -> None:
        array, _, element = self.path.name.removeprefix("job-").partition("_")
        options = self.manager.options
        n_nodes = int(options.get("nodes", 1))
        environment = {
            **os.environ,
            "SLURM_JOB_ID": array if not element else str(int(array) * 1000 + int(element)),
            "SLURM_NTASKS": str(n_nodes * int(options.get("ntasks-per-node", 1))),
            "SLURM_JOB_NUM_NODES": str(n_nodes),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_RESTART_COUNT": str(self.state["restarts"]),
        }
        if element:
            environment |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": element}
        (self.path / "tasks").unlink(missing_ok=True)
        self.ends, self.is_announced, self.is_requeued = None, False, False
        names = {"%A": array, "%a": element, "%j": array}
        log = options["error"]
        for mark, value in names.items():
            log = log.replace(mark, value)
        with Path(log).open("a") as err:
            self.process = subprocess.Popen(
                ["bash", str(self.manager.folder / f"script-{self.manager.number}.sh")],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )
        self.started = time.monotonic()
        self.note("RUNNING", node=NODE)

    def finish(self, state: str, status: int = 0) -> None:
        self.process = None
        if self.is_requeued:
            self.note("PENDING", "BeginTime", restarts=self.state["restarts"] + 1, node="")
        else:
            self.note(state, "NonZeroExitCode" if status else "None", exit=f"{status}:0")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
