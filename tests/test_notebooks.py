"""The notebooks: their form, and that they run from top to bottom."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_one_install_cell_and_no_outputs(path: Path) -> None:
    code = [cell for cell in read(path) if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    installing = [number for number, cell in enumerate(code) if "%pip" in "".join(cell["source"])]
    assert installing == [0]


def test_there_are_two_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["from_bigram_to_gpt", "sweep_and_compare"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient, which executes notebooks, is not installed")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="ipykernel, which executes notebooks, is not installed")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        # Everything but the number of steps is as in the notebook.
        cell.source = re.sub(r"^STEPS = \d+$", "STEPS = 20", cell.source, flags=re.MULTILINE)
        cell.source = cell.source.replace("eval_every=100", "eval_every=10").replace("eval_every=50", "eval_every=10")
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    # Cards and comparisons are shown as HTML, and the bar is shown.
    assert any("<svg" in output.get("data", {}).get("text/html", "") for output in outputs)
    shown = "".join(str(output) for output in outputs)
    assert "%|" in shown or "application/vnd.jupyter.widget-view+json" in shown
