import io
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanolm import terminal
from nanolm.errors import DiskError
from nanolm.tables import Console

HOSTILE = "\x1b]52;c;aGk=\x07\x9b31m\x7f\u202e\u2028\r\n"


@pytest.fixture
def screen() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal: the descriptors to read and to write."""
    pty = pytest.importorskip("pty")
    pair = pty.openpty()
    yield pair
    for descriptor in pair:
        os.close(descriptor)


def full_device() -> int:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    return os.open("/dev/full", os.O_WRONLY)


def test_control_characters_are_escaped() -> None:
    assert terminal.visible(HOSTILE) == "\\x1b]52;c;aGk=\\x07\\x9b31m\\x7f\\u202e\\u2028\\x0d\\x0a"
    assert terminal.visible("a\tb\nc\rd", multiline=True) == "a\tb\nc\\x0dd"
    assert terminal.visible(os.fsdecode(b"na\xefve") + " naïve 東京") == "na\\xefve naïve 東京"


@pytest.mark.parametrize("columns", ["0", "-5", "abc", "", "1", "19", "99999999999"])
def test_invalid_columns_are_ignored(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((0, 0)))
    assert terminal.width() in (80, terminal.MAX_WIDTH)
    assert Console().width == terminal.width()
    monkeypatch.setenv("COLUMNS", "132")
    assert terminal.width() == 132


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "koi8-r", "utf-8"])
def test_any_encoding_accepts_any_text(encoding: str, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file, terminal.open_output(file.fileno(), encoding) as stream:
        stream.write("┌─┤ ⣿⠀ – … 東 " + os.fsdecode(b"\xff") + "\n")
    written = (tmp_path / "out").read_text(encoding)
    if encoding == "utf-8":
        assert written == "┌─┤ ⣿⠀ – … 東 \\xff\n"
    elif encoding in ("ascii", "latin-1"):
        assert written == "+-+ *  - ... ? \\xff\n"


def test_error_handler_of_the_user_is_kept(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file, terminal.open_output(file.fileno(), "ascii", "ignore") as stream:
        stream.write("a東b")
    assert (tmp_path / "out").read_bytes() == b"ab"


def test_best_effort_output_ignores_write_errors() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for descriptor in (full_device(), writing):
        stream = terminal.open_output(descriptor, is_best_effort=True)
        print("a line" * 10_000, file=stream, flush=True)
        stream.close()
        os.close(descriptor)


def test_write_to_a_full_pipe_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "WRITE_TIMEOUT", 0.01)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    stream = terminal.open_output(writing, is_best_effort=True)
    print("x" * 1_000_000, file=stream, flush=True)
    assert os.read(reading, 10) == b"x" * 10
    stream.close()
    os.close(reading)
    os.close(writing)


def test_write_errors_of_a_result_are_raised() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    full = full_device()
    for descriptor, error in ((full, DiskError), (writing, BrokenPipeError)):
        stream = terminal.open_output(descriptor)
        with pytest.raises(error):
            print("a line", file=stream, flush=True)
        os.close(descriptor)
        stream.buffer.raw.is_best_effort = True  # type: ignore[attr-defined]
        stream.close()


def test_text_is_escaped_on_a_terminal_only(
    screen: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    terminal.write(HOSTILE)
    assert piped.getvalue() == HOSTILE + "\n"
    monkeypatch.setattr(sys, "stdout", terminal.open_output(screen[1]))
    terminal.write(HOSTILE + "two\tlines")
    shown = os.read(screen[0], 1000).decode()
    assert "\\x1b]52;c;aGk=\\x07\\x9b31m\\x7f\\u202e\\u2028\\x0d" in shown
    assert "\ntwo" in shown
    assert not set(shown) & set("\x1b\x07\x9b\x7f\u202e\u2028")


def test_console_escapes_control_characters() -> None:
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=True)
    console.print("[bold]bold[/] " + HOSTILE)
    assert "\x1b[1mbold" in printed.getvalue()
    assert "\\x1b]52" in printed.getvalue()
    assert not set(printed.getvalue()) & set("\x07\x9b\x7f\u202e\u2028")


CLOSED = """
import os, sys
for descriptor in (0, 1, 2):
    os.close(descriptor)
sys.stdin = sys.stdout = sys.stderr = sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None
from nanolm import terminal
terminal.prepare()
with open(sys.argv[1], "w") as file:
    print("lost"), terminal.say("lost")
    os.write(2, b"lost"), file.write(str(file.fileno()))
assert os.get_inheritable(2) and not sys.stdin.read()
"""


def test_closed_descriptors_are_reopened(tmp_path: Path) -> None:
    path = tmp_path / "data"
    done = subprocess.run([sys.executable, "-c", CLOSED, path], timeout=60)
    assert done.returncode == 0
    assert int(path.read_text()) > 2


@pytest.mark.parametrize(("config", "expected"), [({"IPKernelApp": {}}, True), ({"TerminalIPythonApp": {}}, False)])
def test_in_notebook_recognizes_a_kernel(
    config: dict[str, object], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # IPython itself is not among the dependencies.
    shell = types.SimpleNamespace(config=config)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert terminal.in_notebook() is expected
    monkeypatch.delitem(sys.modules, "IPython")
    assert not terminal.in_notebook()
