import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nanolm.errors import DiskError, SettingsError
from nanolm.output_files import write_output_file


def test_write_output_file_names_the_option_in_errors(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing/a\.png cannot be written: No such file") as error:
        write_output_file("--png", tmp_path / "missing" / "a.png", b"")
    assert error.value.where == f"--png {tmp_path / 'missing' / 'a.png'}"


def test_write_output_file_follows_links(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to("target")
    for content in (b"first", b"second"):
        write_output_file("-o", link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content


def test_write_output_file_writes_devices_and_fifos_in_place(tmp_path: Path) -> None:
    write_output_file("-o", Path(os.devnull), b"x")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    write_output_file("-o", pipe, b"x" * 100_000)
    reader.join()
    assert received == [b"x" * 100_000]
    assert pipe.is_fifo()
    with pytest.raises(DiskError, match="No space left on device"):
        write_output_file("-o", Path("/dev/full"), b"x")


def test_write_output_file_appends_to_redirected_stdout(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom nanolm.output_files import is_stdout, write_output_file\n"
        "assert is_stdout(Path('/dev/stdout'))\nwrite_output_file('-o', Path('/dev/stdout'), b'page')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("page", "")
    with (tmp_path / "all.txt").open("ab") as file:
        file.write(b"before, ")
        file.flush()
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
        file.write(b", after")
    assert (tmp_path / "all.txt").read_text() == "before, page, after"
