"""Two machines that see the same disk, one with a clock that is five minutes ahead, drive the same sweep."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanolm.locks import holder_of
from nanolm.runs.directory import RunDirectory
from tests.helpers import SMALL, Nanolm, final_state, is_same_state, untimed_rows, wait_until

# A host name needs a namespace of its own. Python runs this module at its start.
OTHER_HOST = ("unshare", "--map-root-user", "--uts", "sh", "-c", 'hostname other-host && exec "$@"', "sh")
CLOCK = "import time\nreal_time = time.time\ntime.time = lambda: real_time() + 300.0\n"

LINE = (*SMALL, "dataset=text", "model=gpt2", "trainer.max_steps=800", "trainer.save_every=100", "trainer.log_every=50")


def start_on_other_host(nanolm: Nanolm, *arguments: str) -> subprocess.Popen[str]:
    if shutil.which("unshare") is None or subprocess.run([*OTHER_HOST, "true"], capture_output=True).returncode:
        pytest.skip("this system gives no host name to a process")
    folder = nanolm.folder / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CLOCK)
    paths = [str(folder), nanolm.environment.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [*OTHER_HOST, sys.executable, "-m", "nanolm", *arguments],
        cwd=nanolm.folder,
        env={**nanolm.environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def runs_in(folder: Path) -> dict[str, RunDirectory]:
    return {path.parent.name: RunDirectory(path.parent) for path in sorted(folder.glob("*/config.yaml"))}


def hosts_of(folder: Path) -> set[str]:
    """Return the hosts that run jobs at this moment."""
    return {holder.host for run in runs_in(folder).values() if run.is_claimed() and (holder := holder_of(run.lock))}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("is_killed", [False, True])
def test_two_hosts_share_a_sweep(is_killed: bool, nanolm: Nanolm, small_text: Path) -> None:
    line = (*LINE, f"dataset.path={small_text}", "seed=1,2,3,4,5,6")
    folder = nanolm.folder / "shared"
    other = start_on_other_host(nanolm, "train", "-m", *line, "hydra.sweep.dir=shared")
    here = nanolm.start("train", "-m", *line, "hydra.sweep.dir=shared")
    wait_until(lambda: len(hosts_of(folder)) == 2, here)
    assert "other-host" in hosts_of(folder)
    if is_killed:
        os.killpg(other.pid, signal.SIGKILL)
    outputs = [process.communicate(timeout=600) for process in (here, other)]
    assert here.returncode == 0, outputs
    assert other.returncode == (-signal.SIGKILL if is_killed else 0), outputs
    assert "6 jobs: 6 completed" in outputs[0][0]
    for _, errors in outputs:
        assert "waiting for" not in errors
        assert "Traceback" not in errors
    whole = nanolm("train", "-m", *line, "hydra.sweep.dir=whole", timeout=600)
    assert whole.returncode == 0, whole.stderr
    shared, undisturbed = runs_in(folder), runs_in(nanolm.folder / "whole")
    assert shared.keys() == undisturbed.keys()
    resumed = [name for name, run in shared.items() if run.log.read_text().count("run directory") > 1]
    assert len(resumed) <= is_killed, "no job is run twice"
    for name, run in shared.items():
        assert untimed_rows(run) == untimed_rows(undisturbed[name])
        assert is_same_state(final_state(run), final_state(undisturbed[name]))
