import enum
from pathlib import Path

import pytest

from nanolm.config import flat, identity
from nanolm.config_file import load_yaml, save_yaml
from nanolm.errors import NanolmError, RunError
from tests.conftest import config_of


@pytest.mark.parametrize(
    "overrides", [[], ["model=bigram", "logger=none"], ["dataset=text", "dataset.path=a 'b'"[:14]]]
)
def test_settings_survive_yaml(overrides: list[str], tmp_path: Path) -> None:
    config = config_of(*overrides)
    path = tmp_path / "config.yaml"
    path.write_text(save_yaml(config))
    assert load_yaml(path) == config
    assert not any(isinstance(value, enum.Enum) for value in flat(config).values())


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("lr: 0.002", "lr: ${oc.env:HOME}", "interpolation"),
        ("lr: 0.002", "lr: fast", "does not fit"),
        ("lr: 0.002", "lr: 0.002\n  _target_: os.system", "does not fit"),
        ("\nseed: 1337", "\nsead: 1337", "missing or an unknown key"),
        ("name: adamw", "name: lion9", "not known here"),
        ("model:", "model: [", "cannot be read"),
    ],
)
def test_a_config_that_was_tampered_with_is_refused(before: str, after: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = save_yaml(config_of())
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(NanolmError, match=expected):
        load_yaml(path)


def test_a_missing_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no config\.yaml"):
        load_yaml(tmp_path / "config.yaml")


def test_a_config_from_before_a_setting_existed_has_its_default(tmp_path: Path) -> None:
    config = config_of("dataset=text", "dataset.path=a.txt")
    path = tmp_path / "config.yaml"
    text = save_yaml(config)
    assert "  nul: refuse\n" in text
    path.write_text(text.replace("  nul: refuse\n", ""))
    assert load_yaml(path) == config
    allowed = config_of("dataset=text", "dataset.path=a.txt", "dataset.nul=allow")
    assert identity(allowed) == identity(config)
