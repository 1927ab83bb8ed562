"""Make system calls of a child process fail, by a small preloaded library (Linux, needs a C compiler)."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("faults.c")

# Calls that change files, as faults.c names them.
CALLS = ("open", "write", "fsync", "truncate", "rename", "mkdir", "unlink")
# Closing a file reports errors of earlier writes on a network file system. It counts only if it is named.
CLOSE = "close"


def build(folder: Path) -> Path:
    """Compile the library, or skip the test where that is not possible."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("fault injection needs Linux and a C compiler")
    library = folder / "faults.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl", "-lpthread"], check=True, timeout=60
    )
    return library


@dataclasses.dataclass
class Faults:
    """The environment in which calls on files below a folder fail or are counted.

    Args:
        library: as `build` returns it.
        folder: only calls on files in it count.
        counter: a file of the test in which all processes count.
    """

    library: Path
    folder: Path
    counter: Path

    def environment(
        self,
        at: int = 0,
        *,
        errno: int = 0,
        last: int | None = None,
        calls: Sequence[str] = (),
        is_short: bool = False,
    ) -> dict[str, str]:
        """Return the variables for a child; its count begins anew.

        Args:
            at: number of the first call that fails, counted from 1; 0: none.
            errno: of a call that fails; 0: the process is killed instead.
            last: number of the last call that fails; None: `at`.
            calls: which calls count, out of CALLS and CLOSE; CALLS by default.
            is_short: whether the first failing write writes half of its bytes, and the next one fails.
        """
        self.counter.write_bytes(bytes(8))
        return {
            "LD_PRELOAD": str(self.library),
            "NANOLM_FAULT_FOLDER": str(self.folder.absolute()),
            "NANOLM_FAULT_CALLS": ",".join(calls),
            "NANOLM_FAULT_AT": str(at),
            "NANOLM_FAULT_LAST": str(at if last is None else last),
            "NANOLM_FAULT_ERRNO": str(errno),
            "NANOLM_FAULT_SHORT": str(int(is_short)),
            "NANOLM_FAULT_COUNTER": str(self.counter),
        }

    @property
    def n_calls(self) -> int:
        """Number of calls so far."""
        return int.from_bytes(self.counter.read_bytes(), sys.byteorder)
