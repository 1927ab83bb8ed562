"""Children with torch loaded already, for tests that end many processes by force."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

from nanolm.config import Config
from nanolm.runs.directory import RunDirectory

# The children are forks of a process that has imported these and started no thread.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["nanolm.training.trainer", "tests.system.test_crash", "tests.system.test_stopped"])


def train_in_child(config: Config, path: Path) -> None:
    """What `nanolm train` does with checked settings; ends the process with its exit status."""
    from nanolm.training.trainer import train

    run = RunDirectory(path)
    errors = os.open(path.with_suffix(".errors"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, sys.stderr.fileno())
    with run.claim():
        outcome = train(config, run, show_bar=False)
    sys.exit(outcome.exit_status)
