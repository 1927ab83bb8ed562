from pathlib import Path
from typing import Any

import pytest

import nanolm
from nanolm.analysis.collection import find
from nanolm.analysis.comparison import Comparison, compare
from nanolm.analysis.judging import At, interpolate
from nanolm.errors import SettingsError
from tests.runs.made import make_run


def compared(folder: Path, **options: Any) -> Comparison:
    return compare(find([folder]), **options)


@pytest.mark.parametrize(
    ("at", "loss", "is_interpolated"),
    [
        (At("step", 20), 2.5, False),
        (At("tokens", 64 * 15), 2.75, True),
        (At("seconds", 2.5), 2.25, True),
        (At("flops", 64 * 1000 * 30), 2.0, False),
    ],
)
def test_curves_are_read_at_a_cost(tmp_path: Path, at: At, loss: float, is_interpolated: bool) -> None:
    make_run(tmp_path / "a", losses=[3.0, 2.5, 2.0])
    found = compared(tmp_path, at=at)
    (row,) = found.rows
    assert (row.estimates["val_loss"].mean, row.is_interpolated) == (pytest.approx(loss), is_interpolated)
    assert row.estimates["bits_per_byte"].mean == pytest.approx(1.5 * loss)
    assert any("~ interpolated linearly" in note for note in found.notes) is is_interpolated
    assert found.point == f"at {at}"


def test_a_cost_outside_of_a_run_leaves_it_without_loss(tmp_path: Path) -> None:
    make_run(tmp_path / "short", losses=[3.0], settings={"optimizer.lr": 0.1})
    make_run(tmp_path / "long", losses=[3.0, 2.0])
    found = compared(tmp_path, at=At("step", 20))
    assert [row.verdict for row in found.rows] == ["best", ""]
    assert "short was last evaluated at step 10: it has no loss at step 20" in found.notes
    with pytest.raises(SettingsError, match="no run has a loss at step 5: long was first evaluated at step 10"):
        compared(tmp_path, at=At("step", 5))


def test_a_counted_model_has_its_loss_at_any_cost(tmp_path: Path) -> None:
    make_run(tmp_path / "counted", losses=[2.4], kind="fitted", settings={"model.name": "ngram"}, step=None)
    make_run(tmp_path / "long", losses=[3.0, 2.0, 1.5])
    found = compared(tmp_path, at=At("step", 20))
    assert [row.estimates["val_loss"].mean for row in found.rows] == [2.0, 2.4]


def test_interpolation_is_linear_within_the_curve() -> None:
    curve = {10.0: 3.0, 20.0: 2.0}
    assert [interpolate(curve, cost) for cost in (5, 10, 15, 20, 25)] == [None, 3.0, 2.5, 2.0, None]


def test_python_api_reads_curves_at_a_cost(tmp_path: Path) -> None:
    make_run(tmp_path / "a", losses=[3.0, 2.5, 2.0])
    assert nanolm.compare(tmp_path, at=("step", 20)).rows[0].estimates["val_loss"].mean == 2.5
    with pytest.raises(SettingsError, match="there is no cost 'money'"):
        nanolm.compare(tmp_path, at=("money", 20))
