import contextlib
import dataclasses
import hashlib
import io
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanolm.errors import DiskError
from nanolm.runs.directory import RunDirectory
from nanolm.runs.log import Log
from nanolm.runs.metrics import MetricsRow
from nanolm.runs.samples import read_samples
from nanolm.runs.summary import Summary

ROW = MetricsRow(step=1, split="train", loss=2.0, tokens_per_second=1234.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rows_are_json_lines(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    log = Log(run, {})
    log.row(ROW)
    log.row(dataclasses.replace(ROW, step=2))
    log.close()
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2]


def test_log_truncates_files_to_the_checkpoint(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    log = Log(run, {})
    log.row(ROW)
    log.sample(1, "kept é")
    sizes = {name: entry["bytes"] for name, entry in log.file_entries().items()}
    log.row(dataclasses.replace(ROW, step=2))
    log.sample(2, "lost")
    log.close()
    run.metrics.write_bytes(run.metrics.read_bytes()[:-7])  # a row cut short by a kill
    log = Log(run, sizes)
    log.row(dataclasses.replace(ROW, step=3))
    log.close()
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 3]
    assert run.samples.read_text(encoding="utf-8") == '{"step": 1, "text": "kept é"}\n'


def test_bar_shows_loss_speed_and_time_left(tmp_path: Path) -> None:
    screen = Terminal()
    log = Log(RunDirectory(tmp_path), {}, bar_file=screen)
    log.start_bar(10, 0)
    for _ in range(5):
        log.advance()
    log.row(ROW)
    log.row(MetricsRow(step=1, split="val", loss=3.0))
    log.say("a line above the bar")
    log.close()
    shown = screen.getvalue()
    for part in ("5/10", "train 2.0000", "1,234 tokens/s", "val 3.0000", "a line above the bar\n", "<"):
        assert part in shown
    assert "a line above the bar" in (tmp_path / "train.log").read_text()


def test_bar_is_hidden_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(RunDirectory(tmp_path), {})
    log.start_bar(10, 0)
    log.advance()
    log.row(ROW)
    log.say("a line")
    log.close()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a line\n")


def test_rows_reach_the_logger(tmp_path: Path) -> None:
    rows: list[MetricsRow] = []

    class Collector:
        def log(self, row: MetricsRow) -> None:
            rows.append(row)

        def close(self, summary: Summary) -> None: ...

        def about(self) -> dict[str, Any]:
            return {}

    log = Log(RunDirectory(tmp_path), {})
    log.logger = Collector()
    log.row(ROW)
    log.close()
    assert rows == [ROW]


def test_quiet_log_writes_to_the_file_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path)
    log = Log(run, {}, quiet=True)
    log.say("step 5")
    log.close()
    assert capsys.readouterr() == ("", "")
    assert "step 5" in run.log.read_text()


@contextlib.contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """Let files grow to a size only: writes beyond it are short, and then fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_rows_wait_for_room_on_the_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path)
    log = Log(run, {})
    log.row(ROW)
    size = run.metrics.stat().st_size
    with full_disk(size + 10):
        log.row(dataclasses.replace(ROW, step=2))
        log.sample(2, "a sample that does not fit into the file")
        for _ in range(9):
            log.note("a line of the log that is longer than ten bytes")
        assert run.metrics.stat().st_size == size, "no part of a row is left"
        with pytest.raises(DiskError, match="the run cannot be written: File too large") as error:
            log.file_entries()
        assert error.value.where == str(run.metrics)
    assert capsys.readouterr().err.count("training continues") == 1
    assert log.failure is not None
    log.row(dataclasses.replace(ROW, step=3))
    entries = log.file_entries()
    log.close()
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2, 3]
    assert [sample.step for sample in read_samples(run.samples)] == [2]
    for path in (run.metrics, run.samples):
        content = path.read_bytes()
        assert entries[path.name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_samples_and_messages_are_best_effort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path)
    log = Log(run, {})
    with full_disk(10):
        for step in (1, 2):
            log.sample(step, "text")
            log.note("a message")
        assert log.file_entries()["samples.jsonl"]["bytes"] == 0
    log.close()
    assert log.failure is None
    messages = capsys.readouterr().err.splitlines()
    assert [message.split(" cannot be written")[0] for message in messages] == [
        f"nanolm: {run.samples}",
        f"nanolm: {run.log}",
    ]
    assert [sample.step for sample in read_samples(run.samples)] == [1, 2], "written when the log was closed"
