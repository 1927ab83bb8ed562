import shutil
from pathlib import Path

import pytest

from nanolm.compose import compose_command, config_folder
from nanolm.config.checks import check
from nanolm.config.yaml_options import FOLDER, main, options
from nanolm.errors import SettingsError
from tests.helpers import mostly_slow

# Options with a setting that has no default.
NEEDED = {
    "dataset=text": "dataset.path=x",
    "dataset=jsonl": "dataset.path=x",
    "dataset=instructions": "dataset.path=x",
    "dataset=huggingface": "dataset.path=x",
    "tokenizer=pretrained": "tokenizer.path=x",
    "mask=pattern": "mask.pattern=SL",
    "scheduler=product": "scheduler.parts=[step,cosine_restarts]",
    "scheduler=chain": "scheduler={parts:[step,cosine],boundaries:[500]}",
}

PATHS = sorted(path.relative_to(config_folder()).with_suffix("") for path in config_folder().glob("*/**/*.yaml"))
OPTIONS = [f"{path.parts[0]}={'/'.join(path.parts[1:])}" for path in PATHS]


@pytest.mark.parametrize("option", mostly_slow(OPTIONS, quick=OPTIONS[::6]))
def test_every_option_composes(option: str) -> None:
    line = compose_command([option, NEEDED.get(option, "seed=1")], multirun=option.startswith("sweep="))
    assert check(line.config) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "configs"))


def test_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    assert capsys.readouterr().err == ""


def test_stale_file_is_named_and_rewritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "optimizer" / "muon.yaml"
    before = path.read_text()
    path.write_text(before.replace("momentum: 0.95", "momentum: 0.5"))
    assert main(["--check"], folder) == 1
    assert capsys.readouterr().err == "configs/optimizer/muon.yaml is stale: run `make configs`\n"
    assert main([], folder) == 0
    assert path.read_text() == before
    assert main(["--check"], folder) == 0


def test_file_of_a_new_schema_is_written(folder: Path) -> None:
    path = folder / "optimizer" / "lion.yaml"
    before = path.read_text()
    path.unlink()
    assert main(["--check"], folder) == 1
    main([], folder)
    assert path.read_text() == before


def test_values_chosen_by_hand_are_kept(folder: Path) -> None:
    path = folder / "model" / "gpt2.yaml"
    before = path.read_text()
    path.write_text(before.replace("dropout: 0.0", "dropout: 0.25", 1).replace("# Positional encoding.", "# Stale."))
    main([], folder)
    assert path.read_text() == before.replace(
        "# Dropout probability. (0 <= number < 1)\ndropout: 0.0",
        "# Dropout probability. (0 <= number < 1; default: 0.0)\ndropout: 0.25",
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("dropout: 0.0", "dropuot: 0.0", "there is no setting 'dropuot'"),
        ("/schema/model/transformer@_here_", "gpt", "does not start from a schema"),
    ],
)
def test_file_that_does_not_fit_is_refused(
    old: str, new: str, expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "model" / "gpt2.yaml"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(SettingsError, match=expected):
        list(options(folder))
    assert main(["--check"], folder) == 2
    assert str(path) in capsys.readouterr().err
