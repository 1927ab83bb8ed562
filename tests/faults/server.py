"""Processes with injected faults, forked from a server that has the library preloaded and everything imported.

The library must be preloaded when an interpreter starts, which takes seconds. The settings of the faults are read again
after each fork.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.faults.injection import Faults

# Imported once, before processes are forked.
PRELOADED = (
    "nanolm.cli.report",
    "nanolm.cli.compare",
    "nanolm.cli.data_prepare",
    "nanolm.cli.train",
    "nanolm.compose.hydra_commands",
    "nanolm.report.contents",
    "nanolm.report.html",
    "nanolm.sweeps.grid",
    "nanolm.sweeps.optuna.search",
    "nanolm.training.trainer",
    "torch._dynamo",
    "tests.preload",
)


class FaultServer:
    """Runs the nanolm command with faults. Used as a context manager.

    Args:
        faults: the library and where calls count.
        folder: the current folder of the commands.
        environment: the environment of the commands, without that of the faults.
    """

    def __init__(self, faults: Faults, folder: Path, environment: Mapping[str, str]) -> None:
        self.faults, self.folder, self._environment = faults, folder, dict(environment)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**self._environment, "LD_PRELOAD": str(self.faults.library)},
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def warm_up(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the command without faults in the server itself, so that later processes need not repeat its imports."""
        return self.run(*command, in_server=True)

    def run(
        self, *command: str | Path, in_server: bool = False, **settings: object
    ) -> subprocess.CompletedProcess[str]:
        """Run the command in a new process; the settings are those of `Faults.environment`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        environment = {**self._environment, **self.faults.environment(**settings)}  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as outputs:
            files = [f"{outputs}/stdout", f"{outputs}/stderr"]
            arguments = [str(argument) for argument in command]
            request = [["nanolm", *arguments], str(self.folder), environment, files, in_server]
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            out, err = (Path(name).read_text() for name in files)
        return subprocess.CompletedProcess(arguments, status, out, err)


def main() -> None:
    """Run a command for each line of stdin, and print its exit status."""
    for name in PRELOADED:
        importlib.import_module(name)
    import tqdm

    # Its thread would not survive a fork.
    tqdm.tqdm.monitor_interval = 0
    _keep_compositions()
    output = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        *arguments, in_server = json.loads(line)
        if in_server:
            status = _run_here(*arguments)
        else:
            # Otherwise each child copies the memory of all imported modules.
            gc.collect()
            gc.freeze()
            if not (child := os.fork()):
                _run(*arguments)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, file=output, flush=True)


def _run(command: Sequence[str], folder: str, environment: Mapping[str, str], files: Sequence[str]) -> None:
    from tests.forks import run_module

    os.environ.update(environment)
    ctypes.CDLL(environment["LD_PRELOAD"]).nanolm_faults_setup()
    run_module(command, Path(folder), environment, [Path(name) for name in files], is_leader=False)


def _run_here(*arguments: Any) -> int:
    standard = [os.dup(descriptor) for descriptor in range(3)]
    try:
        _run(*arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        for descriptor, saved in enumerate(standard):
            os.dup2(saved, descriptor)
            os.close(saved)
    return 0


def _keep_compositions() -> None:
    """Compose each command line once: it takes half of the time of a short run."""
    from nanolm.compose.hydra_app import CheckedConfigLoader

    compose, kept = CheckedConfigLoader.load_configuration, {}

    def load_configuration(self: CheckedConfigLoader, *arguments: Any, **settings: Any) -> Any:
        key = repr((arguments, settings, Path.cwd()))
        if key not in kept:
            kept[key] = compose(self, *arguments, **settings)
        return copy.deepcopy(kept[key])

    CheckedConfigLoader.load_configuration = load_configuration  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
