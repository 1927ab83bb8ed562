"""The journal of a study: damaged, incomplete, foreign, or held by a killed process."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from nanolm.errors import RunError
from nanolm.sweeps.optuna.journal import JOURNAL, open_journal, truncate_incomplete_line
from nanolm.sweeps.optuna.journal_entries import FOLDER
from nanolm.sweeps.optuna.study import OpenStudy, point_of, register_sweeper, take_trials
from nanolm.sweeps.optuna.trials import report_losses
from tests.sweeps.optuna.conftest import open_small_study

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


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of the journal of a study with three trials."""
    folder = tmp_path_factory.mktemp("study")
    study = open_small_study(folder)
    with register_sweeper(folder) as sweeper:
        numbers = take_trials(study, sweeper, 3)
        study.set_attribute(numbers[0], FOLDER, "run-0123456789")
        report_losses(study, numbers[0], {10: 2.5, 20: 2.0})
        study.study.tell(numbers[0], 2.0)
        study.study.tell(numbers[1], math.inf)
    return (folder / JOURNAL).read_bytes().splitlines(keepends=True)


def read_journal(folder: Path, lines: list[bytes]) -> JournalStorage:
    """Write lines to a journal and read them."""
    (folder / JOURNAL).write_bytes(b"".join(lines))
    return open_journal(folder)


def unchecked(line: bytes, **changes: object) -> bytes:
    """Return a line as Optuna writes it, without number and checksum, with changes."""
    entry = {key: value for key, value in json.loads(line).items() if key not in ("line", "check")} | changes
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def index_of(lines: list[bytes], code: int) -> int:
    return next(number for number, line in enumerate(lines) if json.loads(line)["op_code"] == code)


def test_journal_lines_are_numbered_and_readable_by_optuna(lines: list[bytes], tmp_path: Path) -> None:
    assert [json.loads(line)["line"] for line in lines] == list(range(1, len(lines) + 1))
    trials = read_journal(tmp_path, lines).get_all_trials(0)
    assert [trial.value for trial in trials] == [2.0, math.inf, None]
    assert trials[0].intermediate_values == {10: 2.5, 20: 2.0}
    assert JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL))).get_all_trials(0) == trials


def test_journal_of_an_earlier_version_is_continued(lines: list[bytes], tmp_path: Path) -> None:
    read_journal(tmp_path, list(map(unchecked, lines))).set_trial_user_attr(2, "more", 1)
    assert json.loads((tmp_path / JOURNAL).read_bytes().splitlines()[-1])["line"] == len(lines) + 1
    assert open_journal(tmp_path).get_trial(2).user_attrs["more"] == 1


def swapped(lines: list[bytes]) -> list[bytes]:
    return [*lines[:4], lines[5], lines[4], *lines[6:]]


DAMAGES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "lost": (lambda lines: lines[:5] + lines[6:], "line 6 should be line 7: line 6 is missing"),
    "many lost": (lambda lines: lines[:5] + lines[9:], "line 6 should be line 10: lines 6 to 9 are missing"),
    "first lost": (lambda lines: lines[1:], "line 1 should be line 2: line 1 is missing"),
    "doubled": (lambda lines: [*lines[:5], lines[4], *lines[5:]], "line 6 is a copy of line 5: lines were doubled"),
    "moved": (swapped, "line 5 should be line 6: line 5 is missing"),
    "altered": (
        lambda lines: [line.replace(b"2.5", b"0.5") for line in lines],
        "line .* does not have its checksum: it or a line before it was altered",
    ),
    "unchecked": (lambda lines: [*lines, unchecked(lines[-1])], "line .* has no checksum, unlike the lines before"),
    "nested": (lambda lines: [*lines[:3], b"[" * 200_000 + b"\n"], "line 4 is nested too deeply"),
    "nested in a text": (
        lambda lines: [*map(unchecked, lines[:2]), unchecked(lines[index_of(lines, 5)], distribution="[" * 200_000)],
        "line 3 has no valid distribution",
    ),
    "zeros": (lambda lines: [*lines[:3], bytes(512) + b"\n"], "line 4 is not JSON"),
    "a long number": (lambda lines: [*lines[:3], b"9" * 9999 + b"\n"], "line 4 is not JSON"),
    "long": (lambda lines: [*lines, b'{"op_code":' + b" " * 10**6 + b"0}\n"], r"line .* has more than 1,000,000 bytes"),
    "long and incomplete": (
        lambda lines: [*lines, b'{"op_code":' + b" " * 10**6],
        "line .* has more than 1,000,000 bytes",
    ),
    "not UTF-8": (lambda lines: [*lines[:3], b'"\xff"\n'], "line 4 is not JSON"),
    "a list": (lambda lines: [*lines[:3], b"[]\n"], "line 4 has no checksum|line 4 is not an entry"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_journal_is_reported_with_its_line(name: str, lines: list[bytes], tmp_path: Path) -> None:
    damage, expected = DAMAGES[name]
    found = damage(lines)
    with pytest.raises(RunError, match=f"the study's journal is damaged: {expected}") as error:
        read_journal(tmp_path, found)
    assert error.value.where == str(tmp_path / JOURNAL)
    assert "move it away" in error.value.hint
    assert (tmp_path / JOURNAL).read_bytes() == b"".join(found)


# The operation, a change of one of its fields, and the problem.
WRONG_FIELDS: list[tuple[int, dict[str, object], str]] = [
    (0, {"op_code": 11}, "has the unknown operation 11"),
    (0, {"op_code": True}, "is not an entry of a journal"),
    (0, {"op_code": "0"}, "is not an entry of a journal"),
    (0, {"study_name": None}, "has no valid study_name"),
    (0, {"directions": 1}, "has no valid directions"),
    (0, {"worker_id": None}, "has no valid worker_id"),
    (4, {"study_id": 7}, "is about study 7, which no line before it creates"),
    (4, {"study_id": -1}, "has no valid study_id"),
    (4, {"datetime_start": "0001-01-01T00:00:00+23:59"}, "has no valid datetime_start"),
    (4, {"params": {"lr": 1}}, "has no valid params"),
    (4, {"state": 9}, "has no valid state"),
    (5, {"trial_id": 99}, "is about trial 99, which no line before it creates"),
    (5, {"trial_id": "0"}, "has no valid trial_id"),
    (5, {"param_value_internal": 10**400}, "has no valid param_value_internal"),
    (5, {"param_value_internal": 99}, "has a value outside of its distribution"),
    (5, {"distribution": "{}"}, "has no valid distribution"),
    (5, {"distribution": '{"name": "os.system", "attributes": {}}'}, "has no valid distribution"),
    (6, {"state": None}, "has no valid state"),
    (6, {"values": "2.0"}, "has no valid values"),
    (6, {"datetime_complete": "yesterday"}, "has no valid datetime_complete"),
    (7, {"step": "10"}, "has no valid step"),
    (7, {"intermediate_value": [1]}, "has no valid intermediate_value"),
    (8, {"user_attr": {}}, "has no valid user_attr"),
    (8, {"user_attr": {"folder": "../elsewhere"}}, "has no valid user_attr"),
    (8, {"user_attr": {"folder": ".."}}, "has no valid user_attr"),
    (8, {"user_attr": {"folder": 3}}, "has no valid user_attr"),
    (8, {"user_attr": {"owner": "../../victim"}}, "has no valid user_attr"),
    (8, {"user_attr": {"kept_at_step": "10"}}, "has no valid user_attr"),
]


@pytest.mark.parametrize(("code", "changes", "expected"), WRONG_FIELDS)
def test_journal_entries_are_checked(
    code: int, changes: dict[str, object], expected: str, lines: list[bytes], tmp_path: Path
) -> None:
    number = index_of(lines, code)
    with pytest.raises(RunError, match=f"damaged: line {number + 1} {expected}"):
        read_journal(tmp_path, [*map(unchecked, lines[:number]), unchecked(lines[number], **changes)])


def test_values_outside_of_the_search_space_are_refused(lines: list[bytes], tmp_path: Path) -> None:
    changed = [unchecked(line).replace(b"gpt2", b"${oc.env:HOME}") for line in lines]
    read_journal(tmp_path, changed)
    with pytest.raises(RunError, match=r"model=.* of trial \d is not from the search space"):
        open_small_study(tmp_path)


def test_damage_by_another_process_is_noticed_while_the_study_runs(lines: list[bytes], tmp_path: Path) -> None:
    storage = read_journal(tmp_path, lines)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(lines[-1])
    with pytest.raises(RunError, match=f"line {len(lines) + 1} is a copy of line {len(lines)}"):
        storage.set_trial_user_attr(2, "more", 1)
    (tmp_path / JOURNAL).write_bytes(b"".join(lines[:-2]))
    with pytest.raises(RunError, match="which was read before, is missing"):
        storage.get_trial(0)


def test_the_first_lines_of_a_journal_are_a_journal(lines: list[bytes], tmp_path: Path) -> None:
    for length in range(len(lines)):
        read_journal(tmp_path, lines[:length])
    (tmp_path / JOURNAL).write_bytes(b"".join(lines[:9]))
    assert len(open_small_study(tmp_path).trials()) == 2


def draw_change(data: st.DataObject, lines: list[bytes]) -> list[bytes]:
    """Return lines with a change of one field of one of them."""
    number = data.draw(st.integers(0, len(lines) - 1))
    key = data.draw(st.sampled_from(sorted(json.loads(unchecked(lines[number])))))
    value = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just({"a": 1}) | st.just([[]])
    changed = list(map(unchecked, lines))
    changed[number] = unchecked(lines[number], **{key: data.draw(value)})
    return changed


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_reading_a_changed_journal_is_one_error_or_none(
    data: st.DataObject, lines: list[bytes], tmp_path: Path
) -> None:
    with contextlib.suppress(RunError):
        read_journal(tmp_path, draw_change(data, lines))


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_continuing_a_changed_journal_is_one_error_or_none(
    data: st.DataObject, lines: list[bytes], tmp_path: Path
) -> None:
    with contextlib.suppress(RunError):
        read_journal(tmp_path, draw_change(data, lines))
        study = open_small_study(tmp_path)
        with register_sweeper(tmp_path) as sweeper:
            for number in take_trials(study, sweeper, 1):
                point_of(study, number)
