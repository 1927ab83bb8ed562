"""Children with torch loaded already, for tests that start many processes: to load it takes seconds each time."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from pathlib import Path

from nanolm.config import Config
from nanolm.runs.directory import RunDirectory

# The children are forks of a process that has imported these and started no thread.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "nanolm.cli",
        "nanolm.evaluate",
        "nanolm.generate",
        "nanolm.train_verb",
        "nanolm.training.trainer",
        "hydra",
        "torch._dynamo",
        "tests.system.test_crash",
        "tests.system.test_stopped",
    ]
)


def train_in_child(config: Config, path: Path) -> None:
    """What `nanolm train` does with checked settings; ends the process with its exit status."""
    from nanolm.training.trainer import train

    run = RunDirectory(path)
    errors = os.open(path.with_suffix(".errors"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, sys.stderr.fileno())
    with run.claim():
        outcome = train(config, run, show_bar=False)
    sys.exit(outcome.exit_status)


def run_command(arguments: list[str], folder: Path, environment: dict[str, str], files: tuple[Path, Path]) -> None:
    """What `nanolm` does with these arguments in a folder; output and errors go to the two files."""
    import torch

    from nanolm.cli import main

    for descriptor, path in enumerate((Path(os.devnull), *files)):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = ["nanolm", *arguments]
    try:
        main(arguments)
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        # A child of this kind ends without it.
        atexit._run_exitfuncs()
