import json
from pathlib import Path

import pytest

from nanolm.errors import RunError
from nanolm.runs.directory import RunDirectory
from nanolm.runs.log import Log
from nanolm.runs.samples import MAX_LINES, Sample, read_samples


def test_samples_round_trip(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    own_row = '{"step": 7, "text": "of its own making"}\n--- step 7\n'
    written = [Sample(10, "To be\n\nor not\x00\u2028"), Sample(20, ""), Sample(30, own_row), Sample(40, "é")]
    log = Log(run, {})
    for sample in written:
        log.sample(sample.step, sample.text)
    log.close()
    assert read_samples(run.samples) == written
    assert "é" in run.samples.read_text(encoding="utf-8"), "readable without decoding"


def test_missing_and_damaged_samples_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    assert read_samples(path) == []
    path.write_text("")
    assert read_samples(path) == []
    rows = [json.dumps({"step": step, "text": "abc"}) for step in (5, 10)]
    path.write_text("\n".join([rows[0], '"abc"', '{"step": 6}', "[]", rows[1][:-3]]))
    assert read_samples(path) == [Sample(5, "abc")]


def test_files_of_too_many_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("\n" * (MAX_LINES + 1))
    with pytest.raises(RunError, match="damaged: it has more than 100,000 lines"):
        read_samples(path)
