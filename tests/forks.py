"""Child processes forked from a server that has torch imported already, which saves seconds per process."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanolm.config.run import Config
from nanolm.runs.directory import RunDirectory

# The fork server imports these modules once, and starts no threads.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "nanolm.cli.main",
        "nanolm.inference.evaluate",
        "nanolm.inference.generate",
        "nanolm.playground.server",
        "nanolm.cli.train",
        "nanolm.training.trainer",
        "hydra",
        "torch._dynamo",
        "wandb",
        # wandb imports these when a run starts and ends.
        "wandb.sdk.launch",
        "tests.preload",
        "tests.system.test_crash",
        "tests.system.test_stopped",
    ]
)


def train_in_child(config: Config, path: Path) -> None:
    """Train as `nanolm train` does, and end the process with its exit status."""
    from nanolm.training.trainer import train

    run = RunDirectory(path)
    errors = os.open(path.with_suffix(".errors"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, sys.stderr.fileno())
    with run.claim():
        outcome = train(config, run, show_bar=False)
    sys.exit(outcome.exit_status)


class Forked:
    """A module run by the fork server, with the interface of subprocess.Popen.

    Args:
        command: the module and its arguments, as for `python -m`.
        folder: current folder of the process.
        environment: its whole environment.
        is_leader: whether it leads a new process group.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], is_leader: bool = False
    ) -> None:
        self.args = list(command)
        self._outputs = Path(tempfile.mkdtemp())
        files = self._outputs / "stdout", self._outputs / "stderr"
        arguments = (self.args, folder, dict(environment), files, is_leader)
        self._process = FORKS.Process(target=run_module, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the process; return its stdout and stderr. Call it once."""
        self.wait(timeout)
        out, err = ((self._outputs / name).read_text() for name in ("stdout", "stderr"))
        shutil.rmtree(self._outputs)
        return out, err

    def stdout_so_far(self) -> str:
        """Return the stdout of a process that is running."""
        path = self._outputs / "stdout"
        return path.read_text() if path.exists() else ""

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def limit_resources(environment: Mapping[str, str]) -> None:
    """Limit the CPU time and the memory that this process may use in addition to what it has (Linux)."""
    if seconds := environment.get("NANOLM_TEST_CPU_SECONDS"):
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    if n_bytes := environment.get("NANOLM_TEST_MEMORY"):
        status = Path("/proc/self/status").read_text()
        used = int(status.split("VmData:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + int(n_bytes), used + int(n_bytes)))


def run_module(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], files: Sequence[Path], is_leader: bool
) -> None:
    """Run the main() of a module; stdout and stderr are written to the two files."""
    import torch

    if is_leader:
        os.setsid()
    for descriptor, path in enumerate((Path(os.devnull), *files)):
        source = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(source, descriptor)
        os.close(source)
    # Shows where native code has ended the process.
    faulthandler.enable()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    limit_resources(environment)
    module = "nanolm.cli.main" if command[0] == "nanolm" else command[0]
    sys.argv = list(command)
    try:
        importlib.import_module(module).main()
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        # multiprocessing ends its children without exit functions.
        atexit._run_exitfuncs()
