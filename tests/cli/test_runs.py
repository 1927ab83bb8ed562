import dataclasses
import json
import os
import time
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.cli.runs import COLUMNS, Entry, list_runs, matches
from nanolm.errors import NanolmError, Problems
from nanolm.runs.directory import RunDirectory
from nanolm.training.trainer import train
from tests.helpers import SMALL, Nanolm, make_config
from tests.runs.made import make_run

GPT = {"model": "gpt", "dataset": "tiny_shakespeare", "tokenizer": "char", "size": "small"}


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Runs of each status, written an hour apart."""
    folder = tmp_path / "outputs"
    make_run(folder / "done", losses=[3.0] * 9 + [2.0])
    make_run(folder / "gone", losses=[3.0, 2.5], status="running", settings={"optimizer.lr": 0.01})
    make_run(folder / "late", losses=[2.2], status="pruned", choices=GPT, settings={"optimizer.lr": 0.01})
    make_run(folder / "bad", losses=[], status="failed", error="OSError: no space")
    make_run(folder / "torn", config="{")
    for hours, name in enumerate(("done", "gone", "late", "bad", "torn")):
        for file in (folder / name).iterdir():
            then = time.time() - 3600 * hours - 5
            os.utime(file, (then, then))
    return folder


def test_runs_are_listed_newest_first(
    outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with RunDirectory(outputs / "gone").claim():
        assert list_runs(str(outputs), statuses=["running"])[0].name == "gone"
    cli.run(["runs", str(outputs)])
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert rows[3] == ["done", "completed", "100", "2.0000", "3.0000", "5", "s", "bigram", "small"]
    assert rows[4][:5] == ["gone", "unfinished", "20/100", "2.5000", "3.7500"]
    assert rows[5][:4] == ["late", "pruned", "10/100", "2.2000"]
    assert rows[5][5:8] == ["2", "h", "gpt"]
    assert "bad: OSError: no space" in out
    assert "torn: config.yaml is damaged" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    monkeypatch.setenv("COLUMNS", "100")
    cli.run(["runs", str(outputs)])
    assert "tiny_shakespeare" in capsys.readouterr().out


def test_runs_are_filtered_by_state_and_settings(outputs: Path) -> None:
    def names(**options: list[str]) -> list[str]:
        return [entry.name for entry in list_runs(str(outputs), **options)]

    assert names(statuses=["pruned", "unfinished"]) == ["gone", "late"]
    assert names(where=["lr=1e-2"]) == names(where=["optimizer.lr=0.01"]) == ["gone", "late"]
    assert names(where=["lr=1e-2", "model=gpt"]) == ["late"]
    assert names(where=["seed=5"]) == []


def test_runs_are_sorted_by_a_column(outputs: Path) -> None:
    def names(sort: str) -> list[str]:
        return [entry.name for entry in list_runs(str(outputs), sort=sort)]

    assert names("best_val_loss")[:3] == ["done", "torn", "late"]
    assert names("best_val_loss")[-1] == "bad"
    assert names("name") == sorted(names("age"))
    assert names("model")[-1] == "late"


def test_all_mistakes_are_reported(outputs: Path) -> None:
    with pytest.raises(Problems) as caught:
        list_runs(str(outputs), ["complete"], ["modle=gpt", "lr"], "loss")
    text = str(caught.value)
    for part in ("did you mean completed", "did you mean model", "--where lr has no value", "best_val_loss"):
        assert part in text
    with pytest.raises(NanolmError, match="there is no folder"):
        list_runs(str(outputs / "nowhere"))


def test_a_real_run_as_json(nanolm: Nanolm, small_text: Path) -> None:
    config = make_config("dataset=text", f"dataset.path={small_text}", "model=bigram", *SMALL, "trainer.max_steps=4")
    run = RunDirectory(nanolm.folder / "outputs" / "run")
    with run.claim():
        train(config, run, choices={"model": "bigram"})
    done = nanolm("runs", "--json")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)["runs"]
    assert (entry["name"], entry["status"], entry["step"], entry["max_steps"]) == ("run", "completed", 4, 4)
    assert entry["best_val_loss"] == run.read_summary().best_val_loss
    assert entry["choices"] == {"model": "bigram"}
    assert 0 <= entry["age"] < 100
    assert nanolm("runs", "--where", "model=gpt").stdout == "no run satisfies these conditions\n"


def test_a_missing_folder_is_an_error(nanolm: Nanolm) -> None:
    done = nanolm("runs")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no folder outputs" in done.stderr


def test_matching_of_typed_values() -> None:
    assert matches(0.001, "1e-3")
    assert matches(3, "3")
    assert matches(True, "true")
    assert matches(None, "null")
    assert matches(["causal", "banded"], "[causal, banded]")
    assert not matches(0.001, "small")
    assert not matches("gpt", "gpt2")


def test_columns_are_fields_of_the_entries() -> None:
    assert set(COLUMNS) < {field.name for field in dataclasses.fields(Entry)}
