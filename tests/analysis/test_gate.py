from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from nanolm.analysis.collection import find
from nanolm.analysis.gate import Verdict, compare_with_baseline
from nanolm.errors import NanolmError
from tests.runs.made import make_run


def side(folder: Path, losses: list[float], **about: Any) -> None:
    settings = about.pop("settings", {})
    for seed, loss in enumerate(losses, start=1):
        make_run(folder / f"seed{seed}", losses=[loss + 1, loss], settings={**settings, "seed": seed}, **about)


def verdict(folder: Path, **options: Any) -> Verdict:
    baseline = {run.path for run in find([folder / "base"])}
    return compare_with_baseline(find([folder / "runs", folder / "base"]), baseline, **options)


@pytest.mark.parametrize(
    ("losses", "expected", "status"),
    [
        ([1.9, 2.0, 2.11], "better", 0),
        ([2.1, 2.2, 2.31], "worse", 3),
        ([2.01, 2.09, 2.2], "not distinguishable", 4),
        ([2.0, 2.1, 2.2], "not distinguishable", 4),
    ],
)
def test_a_change_has_one_verdict(tmp_path: Path, losses: list[float], expected: str, status: int) -> None:
    side(tmp_path / "base", [2.0, 2.1, 2.2])
    # The settings may be equal: then the code has changed.
    side(tmp_path / "runs", losses)
    found = verdict(tmp_path)
    assert (found.verdict, found.exit_status, found.method, found.n_seeds) == (expected, status, "paired", 3)
    if losses != [2.0, 2.1, 2.2]:
        test = stats.ttest_rel(losses, [2.0, 2.1, 2.2])
        assert found.p_value == pytest.approx(test.pvalue)
        assert found.interval == pytest.approx(tuple(test.confidence_interval()))
    else:
        assert "all losses are equal" in found.notes[-1]


def test_differences_up_to_the_margin_do_not_count(tmp_path: Path) -> None:
    side(tmp_path / "base", [2.0, 2.1, 2.2])
    side(tmp_path / "runs", [1.9, 2.0, 2.1001])
    assert verdict(tmp_path, margin=0.09).verdict == "better"
    assert verdict(tmp_path, margin=0.11).verdict == "not distinguishable"


def test_one_seed_cannot_be_decided(tmp_path: Path) -> None:
    side(tmp_path / "base", [2.0, 2.1])
    side(tmp_path / "runs", [1.0])
    found = verdict(tmp_path)
    assert (found.verdict, found.interval, found.p_value, found.method) == ("not distinguishable", None, None, "")
    assert "one seed on a side" in found.notes[-1]


def test_seeds_without_partner_and_diverged_runs_are_named(tmp_path: Path) -> None:
    side(tmp_path / "base", [2.0, 2.1, 2.2])
    side(tmp_path / "runs", [1.9, 2.0])
    make_run(tmp_path / "runs" / "bad", losses=[9.0], settings={"seed": 3}, status="diverged")
    found = verdict(tmp_path)
    assert found.n_seeds == 2
    assert any("left out, as they are not completed" in note and "bad (diverged)" in note for note in found.notes)
    assert any("1 seeds have no partner" in note for note in found.notes)


def test_runs_that_stopped_early_count_and_are_named(tmp_path: Path) -> None:
    side(tmp_path / "base", [2.0, 2.1, 2.2])
    side(tmp_path / "runs", [1.9, 2.0, 2.11], status="stopped_early")
    found = verdict(tmp_path)
    assert found.verdict == "better"
    (note,) = [note for note in found.notes if note.startswith("stopped early (trainer.early_stop)")]
    assert all(run in note for run in found.runs)


def test_sides_that_are_not_one_setting_are_errors(tmp_path: Path) -> None:
    side(tmp_path / "base", [2.0, 2.1], status="diverged")
    for lr in (0.01, 0.1):
        side(tmp_path / "runs" / str(lr), [2.0, 2.1], settings={"optimizer.lr": lr})
    with pytest.raises(NanolmError) as error:
        verdict(tmp_path, metric="tokens")
    message = str(error.value)
    for words in (
        "the runs of RUNS have 2 settings: they differ in optimizer.lr",
        "the runs of --against are not completed: ",
        "tokens is not a loss",
    ):
        assert words in message


def test_a_baseline_on_another_text_is_an_error(tmp_path: Path) -> None:
    side(tmp_path / "base", [2.0, 2.1])
    side(tmp_path / "runs", [2.0, 2.1], corpus="d" * 64)
    with pytest.raises(NanolmError, match="2 different validation texts: they are not comparable"):
        verdict(tmp_path)
