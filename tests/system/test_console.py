"""Output to pipes, full or closed files, terminals and other encodings; signals of terminals."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import update_summary
from tests.forks import FORKS, run_module
from tests.helpers import REPOSITORY, Nanolm, has_reached_step

BIGRAM = ("dataset=text", "model=bigram", "tokenizer=char", "trainer.device=cpu", "logger=none", "trainer.log_every=1")
SHORT = (*BIGRAM, "trainer.max_steps=4", "trainer.eval_every=2", "trainer.sample_tokens=20")
FULL = Path("/dev/full")

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


def start(nanolm: Nanolm, command: list[str], output: Path, errors: Path) -> Any:
    """Start a command with stdout and stderr redirected to files."""
    arguments = (["nanolm", *command], nanolm.folder, nanolm.environment, (output, errors), False)
    child = FORKS.Process(target=run_module, args=arguments)
    child.start()
    return child


def status_of(child: Any) -> int | None:
    child.join(100)
    return child.exitcode


def test_training_continues_if_the_console_fails(nanolm: Nanolm, small_text: Path, tmp_path: Path) -> None:
    line = ["train", *SHORT, f"dataset.path={small_text}"]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    unread = start(nanolm, [*line, "hydra.run.dir=unread", "trainer.max_steps=12"], pipe, pipe)
    with pipe.open() as reader:
        assert "bigram" in reader.readline()
    full = start(nanolm, [*line, "hydra.run.dir=full"], FULL, FULL)
    sweep = start(nanolm, [*line, "-m", "hydra.sweep.dir=sweep", "seed=1"], FULL, FULL)
    assert [status_of(child) for child in (unread, full, sweep)] == [0, 0, 0]
    for path in (nanolm.folder / "unread", nanolm.folder / "full", *(nanolm.folder / "sweep").glob("*-*")):
        assert RunDirectory(path).read_summary().status == "completed"
        assert "val loss" in (path / "train.log").read_text()


def test_output_that_cannot_be_written_is_an_error(nanolm: Nanolm, small_text: Path, tmp_path: Path) -> None:
    assert nanolm("train", *SHORT, f"dataset.path={small_text}", "hydra.run.dir=R").returncode == 0
    errors = tmp_path / "errors"
    for words in (["runs", "R"], ["generate", "--help"], ["train", "--help"]):
        assert status_of(start(nanolm, words, FULL, errors)) == 1
        assert "nanolm: the output cannot be written: No space left on device" in errors.read_text()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    child = start(nanolm, ["runs", "R"], pipe, errors)
    pipe.open().close()
    assert status_of(child) == 141
    assert errors.read_text() == ""


def test_control_characters_are_escaped_on_terminals_only(nanolm: Nanolm, small_text: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    small_text.write_text("\x1b]52;c;aGk=\x07\x9b31m " * 100, encoding="utf-8")
    line = ["train", *SHORT, f"dataset.path={small_text}", "hydra.run.dir=R", "size.context_length=8"]
    assert nanolm(*line).returncode == 0
    run = RunDirectory(nanolm.folder / "R")
    update_summary(run.summary, status="failed", error="\x1b[2J\x9b", choices={"size": "\x1b"})
    words = ["generate", "R", "--prompt", "\x1b]52;c", "--max-new-tokens", "5"]
    exact = nanolm(*words).stdout
    assert exact.startswith("\x1b]52;c")
    seen, written = pty.openpty()
    assert status_of(start(nanolm, words, Path(os.ttyname(written)), tmp_path / "errors")) == 0
    shown = os.read(seen, 10_000).decode()
    assert shown.startswith("\\x1b]52;c")
    assert not set(shown) & set("\x1b\x07\x9b")
    for words in (["runs", "R"], ["compare", "R"], ["diff", "R", "R", "--all"]):
        printed = nanolm(*words).stdout
        assert printed
        assert not set(printed) & set("\x1b\x07\x9b")


# An ASCII console without a width, and a closed stderr.
SCRIPT = """
nanolm() {{ "{python}" -m nanolm "$@"; }}
export COLUMNS=0 PYTHONIOENCODING=ascii
nanolm train {line} 2>&- > out; echo "train $?"
grep '^generate ' out | sed 's/^generate *//' > command
sed -i 's/$/ --max-new-tokens 3/' command
source command > generated; echo "generate $?"
"""


@pytest.mark.slow
def test_printed_commands_can_be_pasted_into_a_shell(nanolm: Nanolm, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    text = tmp_path / "text.txt"
    text.write_text("– Où est-il ? “Là” œuvre\n" * 100, encoding="utf-8")
    line = " ".join([*SHORT, f"dataset.path={text}", "hydra.run.dir=\"'it\\'s 5 \\$HOME & a=b'\""])
    script = SCRIPT.format(python=sys.executable, line=line)
    environment = {**nanolm.environment, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([bash, "-c", script], cwd=nanolm.folder, env=environment, capture_output=True, timeout=200)
    assert done.stdout.decode() == "train 0\ngenerate 0\n", done.stderr.decode()
    (summary,) = nanolm.folder.glob("*/summary.json")
    assert summary.parent.name == "it's 5 $HOME & a=b"
    assert "completed at step 4" in (nanolm.folder / "out").read_text("ascii")
    assert (nanolm.folder / "generated").read_text("ascii").startswith("O? est-il")


def test_closing_the_terminal_saves_a_checkpoint(nanolm: Nanolm, small_text: Path, tmp_path: Path) -> None:
    line = ["train", *BIGRAM, f"dataset.path={small_text}", "hydra.run.dir=R", "trainer.max_steps=100000"]
    line += ["trainer.eval_every=100000", "trainer.save_every=100000", "trainer.sample_tokens=0"]
    child = start(nanolm, line, tmp_path / "output", tmp_path / "errors")
    run = RunDirectory(nanolm.folder / "R")
    while child.is_alive() and not has_reached_step(run, 1):
        child.join(0.01)
    # Both the exiting shell and the kernel send it.
    for _ in range(2):
        os.kill(child.pid, signal.SIGHUP)
    assert status_of(child) == 128 + signal.SIGHUP, (tmp_path / "errors").read_text()
    summary = run.read_summary()
    assert summary.status == "interrupted"
    assert re.search(rf"saved step-0*{summary.step}\b", run.log.read_text())


def run_with_signal_while_reading(command: list[str], nanolm: Nanolm, number: int, files: tuple[Path, Path]) -> None:
    """Run a command and send a signal to this process while it reads the text."""
    from nanolm.data.tokens import cache as token_cache

    def stop(*arguments: object, **settings: object) -> None:
        os.kill(os.getpid(), number)

    token_cache.fit_tokenizer = stop  # type: ignore[assignment]
    run_module(["nanolm", *command], nanolm.folder, nanolm.environment, files, False)


@pytest.mark.parametrize("sweep", [False, True])
def test_a_signal_before_training_leaves_no_run(sweep: bool, nanolm: Nanolm, small_text: Path, tmp_path: Path) -> None:
    files = tmp_path / "output", tmp_path / "errors"
    place = ["-m", "seed=1,2", "hydra.sweep.dir=S"] if sweep else ["hydra.run.dir=R"]
    words = ["train", *SHORT, f"dataset.path={small_text}", *place]
    child = FORKS.Process(target=run_with_signal_while_reading, args=(words, nanolm, signal.SIGTERM, files))
    child.start()
    assert status_of(child) == 143
    assert "Traceback" not in files[1].read_text()
    assert not list(nanolm.folder.glob("R")) + list(nanolm.folder.glob("S/*/config.yaml"))
