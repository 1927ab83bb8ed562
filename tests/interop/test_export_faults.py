"""An export to a disk that fails, or one that is killed, leaves the whole folder or nothing visible."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.injection import CALLS, CLOSE, Faults, build
from tests.faults.server import FaultServer
from tests.helpers import temporary_files
from tests.run_fixtures import make_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Every so many calls, one fails; no divisor of the calls per file, so that all kinds of calls are met.
STRIDE = 7

FORMS = ("huggingface", "gguf")

DISKS: dict[str, dict[str, Any]] = {
    "full": {"errno": errno.ENOSPC, "last": 10**9, "calls": ("open", "write", "fsync", "mkdir", CLOSE)},
    "full for a moment": {"errno": errno.ENOSPC, "calls": ("write",), "is_short": True},
    "failing once": {"errno": errno.EIO, "calls": CALLS},
    "read-only": {"errno": errno.EROFS, "last": 10**9, "calls": CALLS},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Iterator[FaultServer]:
    folder = tmp_path_factory.mktemp("export_faults")
    overrides = ("model=gpt2", "tokenizer=bpe", "tokenizer.vocab_size=300", "trainer.max_steps=2")
    make_run(folder / "run", text, *overrides)
    (folder / "here").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    environment |= {"NANOLM_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    faults = Faults(build(folder), folder / "here", folder / "counter")
    with FaultServer(faults, folder / "here", environment) as started:
        yield started


def command(form: str) -> tuple[str, ...]:
    return ("export", "../run", "--to", "new/out", "--format", form)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def count_calls(server: FaultServer, form: str, **settings: Any) -> tuple[int, dict[str, bytes]]:
    """Return the number of calls of an export without faults, and what it writes."""
    server.warm_up(*command(form))
    shutil.rmtree(server.folder / "new")
    done = server.run(*command(form), **settings)
    assert done.returncode == 0, done.stderr
    expected = contents(server.folder / "new" / "out")
    assert "README.md" in expected
    shutil.rmtree(server.folder / "new")
    return server.faults.n_calls, expected


def require_whole_or_nothing(server: FaultServer, form: str, expected: dict[str, bytes], is_done: bool) -> None:
    """Require that the folder is complete or not visible, and that a repeated export leaves no temporary files.

    Args:
        is_done: whether the command succeeded.
    """
    target = server.folder / "new" / "out"
    if target.exists():
        assert contents(target) == expected
        shutil.rmtree(target)
    else:
        assert not is_done
    assert [path for path in server.folder.glob("new/*") if not path.name.startswith(".")] == []
    done = server.run(*command(form))
    assert done.returncode == 0, done.stderr
    assert contents(target) == expected
    assert temporary_files(server.folder) == []
    shutil.rmtree(server.folder / "new")


@pytest.mark.parametrize(
    ("form", "disk"), [*(("huggingface", disk) for disk in DISKS), ("gguf", "full"), ("gguf", "full for a moment")]
)
def test_export_to_failing_disk_is_one_error(form: str, disk: str, server: FaultServer) -> None:
    n_calls, expected = count_calls(server, form, calls=DISKS[disk]["calls"])
    n_failures = 0
    for at in range(1, n_calls + 1, STRIDE):
        done = server.run(*command(form), at=at, **DISKS[disk])
        assert "Traceback" not in done.stdout + done.stderr
        assert done.returncode in (0, 1, 2), done.stderr
        if done.returncode:
            n_failures += 1
            assert "new/out cannot be written" in done.stderr, done.stderr
            assert "  where: " in done.stderr
            assert "  hint:  " in done.stderr
            # What cannot be removed stays until the next export.
            assert temporary_files(server.folder) == [] or disk in ("failing once", "read-only")
        require_whole_or_nothing(server, form, expected, done.returncode == 0)
    # The rest of a short write is written by the next one.
    assert (n_failures > 0) == (disk != "full for a moment")


@pytest.mark.parametrize("form", FORMS)
def test_export_that_is_killed_leaves_nothing_visible(form: str, server: FaultServer) -> None:
    n_calls, expected = count_calls(server, form)
    for at in range(1, n_calls + 1, STRIDE):
        done = server.run(*command(form), at=at)
        assert done.returncode == -signal.SIGKILL, done.stderr
        require_whole_or_nothing(server, form, expected, is_done=False)
