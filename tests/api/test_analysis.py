"""Comparisons, reports and counts through the Python API."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

import nanolm
from nanolm.cli.main import run as run_command
from nanolm.errors import RunError, SettingsError


def test_compare_has_rows_and_tables(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared = nanolm.compare(pair, by="model", metric="bits_per_byte,parameters")
    assert {row.settings["model"] for row in compared.rows} == {"bigram", "gpt"}
    assert compared.metrics[0] == "bits_per_byte"
    table = compared.to_pandas()
    assert table["bits_per_byte"].iloc[0] == compared.rows[0].estimates["bits_per_byte"].mean
    run_command(["compare", str(pair), "--by", "model", "--metric", "bits_per_byte,parameters", "--markdown"])
    assert compared.to_markdown() + "\n" == capsys.readouterr().out
    assert [column.tag for column in ElementTree.fromstring(compared._repr_html_()).iter()].count("table") == 1


def test_compare_takes_runs_and_several_paths(pair: Path) -> None:
    runs = [nanolm.load(path) for path in sorted(pair.iterdir())]
    assert len(nanolm.compare(runs, metric=["parameters"]).rows) == 2
    assert len(nanolm.compare(runs[0]).rows) == 1
    with pytest.raises(RunError, match="no paths"):
        nanolm.compare([])
    with pytest.raises(SettingsError, match="no metric"):
        nanolm.compare(runs, metric="los")


def test_html_of_a_comparison_escapes_names(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "bigram", tmp_path / "<script>alert(1)")
    shutil.copytree(pair / "gpt", tmp_path / "<b>&")
    shown = nanolm.compare(tmp_path)._repr_html_()
    assert "alert(1)" in nanolm.compare(tmp_path).to_markdown()
    assert "<script" not in shown
    ElementTree.fromstring(shown)


@pytest.mark.slow
def test_report_is_written_by_a_package_that_can_be_called(pair: Path, tmp_path: Path) -> None:
    import nanolm.report.html

    page = nanolm.report(pair, tmp_path / "report.html", texts=["3 and"], layers=[0])
    assert page.read_text().count("<html") == 1
    assert nanolm.report.html.SCRIPTS
    with pytest.raises(RunError, match="a part of the run"):
        nanolm.report(pair, pair / "gpt" / "metrics.jsonl")
    with pytest.raises(SettingsError, match="no folder"):
        nanolm.report(pair, tmp_path / "none" / "report.html")


def test_count_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    counted = nanolm.count("model=gpt2", "size=gpt2", vocab_size=50257)
    assert counted["parameters"]["total"] == 124_439_808
    run_command(["count", "model=gpt2", "size=gpt2", "--vocab-size", "50257", "--json"])
    assert json.loads(capsys.readouterr().out) == counted
