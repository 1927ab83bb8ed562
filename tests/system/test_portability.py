"""Training without the modules, functions and signals that Windows lacks."""

import subprocess
import sys
from pathlib import Path

from nanolm.runs.directory import RunDirectory
from tests.helpers import SMALL, Nanolm

# Runs nanolm with the given arguments, without those and without /proc/self/status.
WITHOUT_POSIX = """
import os, signal, sys

HIDDEN = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name in HIDDEN:
            raise ImportError(f"{name} is hidden")

for name in HIDDEN:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hide())
for module, names in (
    (os, ("O_NOFOLLOW", "O_DIRECTORY", "O_NOCTTY", "fchmod", "fchown", "sched_getaffinity", "killpg", "statvfs")),
    (signal, ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTSTP", "SIGCONT", "SIGKILL")),
):
    for name in names:
        delattr(module, name)

from nanolm.cli import main as cli
from nanolm.training import meters

meters.STATUS = meters.STATUS.with_name("nowhere")
for more in ([], ["hydra.run.dir=tried", "dry_run=true"]):
    assert cli.run([*sys.argv[1:], *more]) == 0
"""


def test_training_works_without_posix_modules(nanolm: Nanolm, small_text: Path) -> None:
    line = (*SMALL, "dataset=text", f"dataset.path={small_text}", "model=bigram", "trainer.max_steps=3")
    command = [sys.executable, "-c", WITHOUT_POSIX, "train", *line, "hydra.run.dir=run"]
    # Set on Windows; torch reads the user name.
    environment = {**nanolm.environment, "USERNAME": "someone"}
    done = subprocess.run(command, cwd=nanolm.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = RunDirectory(nanolm.folder / "run").read_summary()
    assert (summary.status, summary.step, summary.peak_memory_bytes) == ("completed", 3, None)
    assert "dry run: nothing was written" in done.stdout
    assert nanolm("runs", "run").returncode == 0
