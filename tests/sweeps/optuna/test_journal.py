"""The journal of a study: damaged, incomplete, foreign, or held by a killed process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nanolm.errors import RunError
from nanolm.sweeps.optuna.journal import JOURNAL, truncate_incomplete_line
from nanolm.sweeps.optuna.study import OpenStudy, register_sweeper, take_trials

HOLDER = """
import sys, time
from pathlib import Path
from nanolm.sweeps.optuna.journal import JOURNAL, JournalLock
from nanolm.sweeps.optuna.settings import OptunaConfig
from nanolm.sweeps.optuna.space import Choice, Interval
from nanolm.sweeps.optuna.study import open_study, register_sweeper, take_trials

folder = Path(sys.argv[1])
settings = OptunaConfig(sampler="random", pruner="asha", n_trials=6, min_steps=10, reduction_factor=3)
space = (Interval("lr", 1e-4, 1e-1, is_log=True), Choice("model", ("gpt", "gpt2")))
with register_sweeper(folder) as sweeper:
    take_trials(open_study(folder, "study", settings, space, max_steps=90), sweeper, 2)
    JournalLock(folder / JOURNAL).acquire()
    with (folder / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 6, "worker')
    print("ready", flush=True)
    time.sleep(600)
"""


def test_killed_sweeper_releases_its_trials_and_the_journal(
    make_study: Callable[..., OpenStudy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited for a lock"))
    study = make_study()
    with register_sweeper(tmp_path) as sweeper:
        assert take_trials(study, sweeper, 9) == [0, 1]
        assert take_trials(study, sweeper, 1) == [2]
    assert all(json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines())
    assert not list(tmp_path.glob(".sweeper-*")), "the lock files of ended sweepers are removed"


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b""), (b"{}\n", b"{}\n"), (b"{}\n{}", b"{}\n"), (b"{", b""), (b"{}\n{}\n[", b"{}\n{}\n")],
)
def test_truncate_incomplete_line_keeps_complete_lines(before: bytes, after: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(before)
    truncate_incomplete_line(path)
    assert path.read_bytes() == after


def test_open_study_reports_a_damaged_journal(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    make_study()
    path = tmp_path / JOURNAL
    path.write_bytes(b"{garbage\n" + path.read_bytes())
    with pytest.raises(RunError, match=f"(?s)the study's journal is damaged.*{JOURNAL}.*move it away"):
        make_study()


@pytest.mark.parametrize(
    "content", ["my own notes", "my own notes\n", '{"op_code":0}\n{"a": 1}\n', '{"op_code":0}\nnotes']
)
def test_open_study_does_not_write_to_a_foreign_file(
    content: str, make_study: Callable[..., OpenStudy], tmp_path: Path
) -> None:
    path = tmp_path / JOURNAL
    path.write_text(content)
    with pytest.raises(RunError, match="the study's journal is damaged"):
        make_study()
    assert path.read_text() == content


def test_open_study_replaces_an_incomplete_first_line(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text('{"op_co')
    assert make_study().trials() == []


def test_open_study_refuses_a_journal_that_is_a_link(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / JOURNAL).symlink_to("../victim")
    with pytest.raises(RunError, match=rf"{JOURNAL} is a symbolic link"):
        make_study(tmp_path / "sweep")
    assert not (tmp_path / "victim").exists()
