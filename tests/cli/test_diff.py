import json
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.errors import Problems, RunError
from nanolm.runs.directory import RunDirectory
from nanolm.training.trainer import train
from tests.helpers import SMALL, Nanolm, make_config
from tests.runs.made import make_run

VERSIONS = {"python": "3.12", "torch": "2.13"}


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_settings_and_versions_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(tmp_path / "a", versions=VERSIONS, git={"commit": "1" * 40, "dirty": False})
    changes = {"optimizer.lr": 0.01, "mask.pattern": ["causal", "banded"], "trainer.save_every": 5}
    versions = VERSIONS | {"torch": "2.14"}
    second = make_run(tmp_path / "b", settings=changes, versions=versions, git={"commit": "2" * 40, "dirty": False})
    cli.run(["diff", str(first), str(second)])
    out = lines(capsys)
    assert ["setting", "a", "b"] in out
    assert ["mask.pattern", "null", "causal,banded"] in out
    assert ["optimizer.lr", "0.002", "0.01"] in out
    assert ["versions.torch", "2.13", "2.14"] in out
    assert ["git.commit", "1" * 16, "2" * 16] in out
    words = " ".join(word for line in out for word in line)
    assert "versions.python" not in words
    assert "differ without affecting the results: trainer.save_every (--all)" in words


def test_all_shows_equal_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", settings={"trainer.save_every": 5})
    cli.run(["diff", str(first), str(second)])
    assert "no setting that affects the results differs" in capsys.readouterr().out
    cli.run(["diff", str(first), str(second), "--all"])
    out = lines(capsys)
    assert ["trainer.save_every", "250", "5"] in out
    assert ["seed", "1", "1"] in out


def test_equal_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    cli.run(["diff", str(first), str(second)])
    assert capsys.readouterr().out == "no setting differs\n"


def test_config_files_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\nmodel: {name: gpt}\n")
    (tmp_path / "b.yaml").write_text("seed: 1\nmodel: {name: gpt, dropout: null}\n")
    cli.run(["diff", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found == {"settings": {"model.dropout": ["absent", None]}, "made_with": {}}


def test_both_mistakes_are_reported(tmp_path: Path) -> None:
    (tmp_path / "torn.yaml").write_text("{")
    with pytest.raises(Problems) as caught:
        cli.run(["diff", str(tmp_path / "nowhere"), str(tmp_path / "torn.yaml")])
    assert "there is no folder" in str(caught.value)
    assert "torn.yaml is damaged" in str(caught.value)
    with pytest.raises(RunError, match="is not a run directory"):
        cli.run(["diff", str(tmp_path), str(make_run(tmp_path / "a"))])


def test_real_runs(nanolm: Nanolm, small_text: Path) -> None:
    for model in ("bigram", "gpt"):
        config = make_config(
            "dataset=text", f"dataset.path={small_text}", f"model={model}", *SMALL, "trainer.max_steps=2"
        )
        run = RunDirectory(nanolm.folder / model)
        with run.claim():
            train(config, run, choices={"model": model})
    done = nanolm("diff", "bigram", "gpt")
    assert done.returncode == 0, done.stderr
    rows = [row.split() for row in done.stdout.splitlines()]
    assert ["choices.model", "bigram", "gpt"] in rows
    assert ["model.dropout", "absent", "0"] in rows
    assert not any(row[:1] in (["seed"], ["corpus"]) for row in rows)
