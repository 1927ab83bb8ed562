from pathlib import Path

import pytest

from nanolm.analysis.collection import find
from nanolm.analysis.comparison import compare
from nanolm.analysis.pareto import Segment, mean_curves, pareto_front
from nanolm.errors import SettingsError
from tests.runs.made import make_run


def test_front_has_the_best_row_at_each_cost(tmp_path: Path) -> None:
    for seed, shift in ((1, 0.0), (2, 0.2)):
        quick = {"optimizer.lr": 0.1, "seed": seed}
        make_run(tmp_path / f"quick{seed}", losses=[2.5 + shift, 2.4 + shift, 2.4 + shift], settings=quick)
        make_run(tmp_path / f"slow{seed}", losses=[3.0, 2.6, 2.0], settings={"seed": seed})
    rows = compare(find([tmp_path])).rows
    assert [row.settings["optimizer.lr"] for row in rows] == [0.002, 0.1]
    curves = mean_curves(rows, "tokens", "val_loss")
    assert curves[1] == {640.0: pytest.approx(2.6), 1280.0: pytest.approx(2.5), 1920.0: pytest.approx(2.5)}
    assert pareto_front(curves) == [
        Segment(1, 640.0, 1280.0, pytest.approx(2.6), pytest.approx(2.5)),
        Segment(0, 1920.0, 1920.0, 2.0, 2.0),
    ]


def test_rows_without_curves_are_an_error(tmp_path: Path) -> None:
    make_run(tmp_path / "a", rows=False)
    with pytest.raises(SettingsError, match="no row has a validation loss by tokens"):
        mean_curves(compare(find([tmp_path])).rows, "tokens", "val_loss")
