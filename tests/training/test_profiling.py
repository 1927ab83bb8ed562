"""The trace that profile=true leaves."""

import json
from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from nanolm.training.trainer import train
from tests.helpers import final_state, is_same_state, small_config


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_trace_is_written_and_does_not_change_training(steps: int, small_text: Path, tmp_path: Path) -> None:
    found = []
    for profile in (True, False):
        run = RunDirectory(tmp_path / str(profile))
        run.path.mkdir()
        train(small_config(small_text, f"trainer.max_steps={steps}"), run, profile=profile)
        found.append(run)
    traced, plain = found
    assert is_same_state(*(final_state(run)[0] for run in found))
    assert not plain.profile.exists()
    events = json.loads(traced.profile.read_text())["traceEvents"]
    assert len({event["name"] for event in events if event["name"].startswith("ProfilerStep#")}) == min(5, steps)
    assert any(event["name"] == "aten::addmm" or event["name"] == "aten::mm" for event in events)
    assert "took most of the time" in traced.log.read_text()
