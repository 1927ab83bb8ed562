from pathlib import Path

from nanolm.analysis.collection import find
from nanolm.analysis.comparison import compare
from nanolm.analysis.comparison_table import fit_columns, make_columns
from tests.runs.made import make_run


def test_many_settings_are_folded_into_one_column(tmp_path: Path) -> None:
    for number in range(2):
        settings = {"optimizer.lr": number + 1, "size.n_layers": number, "size.d_model": 8 + number}
        settings |= {"size.context_length": 16 + number, "trainer.batch_size": 4 + number, "size.n_heads": 1 + number}
        make_run(tmp_path / f"run{number}", settings=settings, choices={})
    columns = make_columns(compare(find([tmp_path])))
    narrow, _ = fit_columns(columns, 78)
    assert narrow[0].name == "settings"
    assert narrow[0].width <= 78 * 0.45
    words = narrow[0].cells[1].split()
    assert {"lr=2", "n_layers=1", "d_model=9", "context_length=17", "batch_size=5", "n_heads=2"} == set(words)
    assert "counted bigram" in narrow[0].cells
    assert [column.name for column in fit_columns(columns, 300)[0]][:2] == ["size.n_layers", "size.n_heads"]
