import json
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.errors import SettingsError
from tests.helpers import Nanolm


def test_data_show_prints_tokens_and_a_batch(nanolm: Nanolm, small_text: Path) -> None:
    overrides = ("dataset=text", f"dataset.path={small_text}", "dataset.test_fraction=0.1", "size.context_length=8")
    done = nanolm("data", "show", *overrides, "--json", "--tokens", "5", "trainer.batch_size=2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    n_characters = len(small_text.read_text())
    assert sum(split["characters"] for split in found["splits"].values()) == n_characters
    assert list(found["splits"]) == ["train", "val", "test"]
    assert found["splits"]["train"]["bytes_per_token"] == 1
    assert (found["tokenizer"], found["lossless"]) == ("char", True)
    assert "".join(token["text"] for token in found["first_tokens"]) == small_text.read_text()[:5]
    assert len(found["vocabulary"]) == 5
    assert found["batch"]["shape"] == [2, 8]
    for row in found["batch"]["rows"]:
        assert row["inputs"]["text"][1:] == row["targets"]["text"][:-1]
        assert len(row["inputs"]["ids"]) == 5
    shown = nanolm("data", "show", *overrides)
    assert shown.returncode == 0, shown.stderr
    for words in ("bytes per token", "lossless", "first tokens of train", "first batch", "targets", "'0'"):
        assert words in shown.stdout
    assert all(len(text) <= 80 for text in shown.stdout.splitlines())


def test_padding_is_not_shown(nanolm: Nanolm, small_text: Path) -> None:
    done = nanolm("data", "show", "dataset=text", f"dataset.path={small_text}", "trainer.sampling=lines", "--json")
    found = json.loads(done.stdout)
    lines = small_text.read_text().splitlines()
    assert found["splits"]["train"]["rows"] < len(lines)
    assert all(-100 not in row["targets"]["ids"] for row in found["batch"]["rows"])
    assert found["batch"]["scored"] < 16 * 64


def test_mistakes_are_reported(nanolm: Nanolm, small_text: Path) -> None:
    for arguments, expected in {
        ("data", "shwo"): "did you mean show?",
        ("data", "show", "datset=text"): "did you mean dataset?",
        ("data", "show", "dataset=text", "dataset.path=nowhere"): "no file or folder matching",
        ("data", "show", "--tokens", "0"): "--tokens is 0",
        ("data", "prepare", "dataset.val_fraction=0.6", "dataset.test_fraction=0.5"): "leave no training text",
        ("data", "prepare", "dataset.split_by=line", "trainer.sampling=documents"): "dataset.split_by=line splits them",
    }.items():
        done = nanolm(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    assert nanolm("data").stdout.startswith("nanolm data prepare")


def test_too_large_a_batch_is_an_error(small_text: Path) -> None:
    overrides = ["dataset=text", f"dataset.path={small_text}", f"trainer.batch_size={9 * 10**18}"]
    with pytest.raises(SettingsError, match=r"the tokens of a batch take [\d.,]+ PiB, and this machine has"):
        cli.run(["data", "show", *overrides])


def test_an_empty_config_dir_is_an_error() -> None:
    with pytest.raises(SettingsError, match="--config-dir is empty"):
        cli.run(["data", "show", "dataset=text", "--config-dir", ""])
