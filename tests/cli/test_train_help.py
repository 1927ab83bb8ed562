import subprocess
import sys
from pathlib import Path

import pytest

from nanolm.cli.train_help import train_help
from nanolm.config.run import SETTING_GROUPS
from nanolm.errors import SettingsError


def test_help_lists_options_and_settings() -> None:
    text = train_help()
    for part in (
        "  optimizer:  adafactor, adam, adamw, lion, muon, schedule_free, sgd\n",
        "optimizer=muon: Muon for hidden matrices (Jordan et al. 2024)",
        "  trainer.max_steps=1000            Number of training steps. null: another budget",
        "  seed=1337 ",
    ):
        assert part in text
    assert [line.split("=")[0] for line in text.splitlines() if line.split("=")[0] in SETTING_GROUPS] == [
        *SETTING_GROUPS
    ]
    assert "schema" not in text
    assert max(map(len, text.split("\nOptions")[1].splitlines())) <= 100


def test_help_of_an_option_explains_its_settings() -> None:
    text = train_help(["optimizer=muon", "optimizer.lr=0.5"])
    assert text.startswith("optimizer=muon: Muon for hidden matrices")
    assert "  optimizer.lr=0.5                  Peak learning rate" in text
    assert "(number > 0; default: 0.01)" in text
    assert "\n  trainer." not in text
    assert "rotary      Queries and keys are rotated" in train_help(["model"])


def test_help_of_an_option_needs_no_values() -> None:
    assert "  dataset.path=...                  A file, a directory" in train_help(["dataset=text"])


def test_help_includes_own_options(tmp_path: Path) -> None:
    (tmp_path / "size").mkdir()
    (tmp_path / "size" / "mine.yaml").write_text("defaults: [tiny, _self_]\nn_layers: 3\n")
    assert "mine" in train_help([], str(tmp_path))
    assert "size.n_layers=3" in train_help(["size=mine"], str(tmp_path))


@pytest.mark.parametrize(("override", "expected"), [("optimzer", "did you mean optimizer"), ("size=tny", "tiny")])
def test_help_of_an_unknown_option_has_a_hint(override: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        train_help([override])


def test_help_imports_no_torch() -> None:
    code = "import sys; from nanolm.cli.train_help import train_help; train_help(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
