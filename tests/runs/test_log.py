import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

from nanolm.runs.directory import RunDirectory
from nanolm.runs.log import Log
from nanolm.runs.metrics import MetricsRow
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
