import dataclasses
import enum
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanolm.analysis.collection import plain_settings
from nanolm.config.composed import to_config, to_omegaconf
from nanolm.config.dataset import TextConfig
from nanolm.config.fields import flat
from nanolm.config.identity import identity
from nanolm.config.logger import WandbConfig
from nanolm.config.mask import PatternConfig
from nanolm.config.yaml_io import load_yaml, save_yaml
from nanolm.errors import NanolmError, RunError
from tests.helpers import make_config


@pytest.mark.parametrize(
    "overrides", [[], ["model=bigram", "logger=none"], ["dataset=text", "dataset.path=a 'b'"[:14]]]
)
def test_config_survives_saving_and_loading(overrides: list[str], tmp_path: Path) -> None:
    config = make_config(*overrides)
    path = tmp_path / "config.yaml"
    path.write_text(save_yaml(config))
    assert load_yaml(path) == config
    assert not any(isinstance(value, enum.Enum) for value in flat(config).values())


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("lr: 0.01", "lr: ${oc.env:HOME}", "interpolation"),
        ("lr: 0.01", "lr: fast", r"does not fit: optimizer\.lr is 'fast', and must be a number"),
        ("max_steps: 1000", "max_steps: 1e3", r"trainer\.max_steps is 1000\.0, and must be a whole number"),
        ("lr: 0.01", "lr: 0.01\n  _target_: os.system", "does not fit: there is no setting 'optimizer._target_'"),
        ("\nseed: 1337", "\nsead: 1337", "missing or unknown key"),
        ("name: muon", "name: lion9", "not registered"),
        (
            "model:",
            "model: [",
            r"config\.yaml is damaged: expected[^\n]*\(line (\d+)\)\n  where: [^\n]*:\1\n",
        ),
    ],
)
def test_edited_config_is_refused(before: str, after: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = save_yaml(make_config())
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(NanolmError, match=expected):
        load_yaml(path)


def test_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no config\.yaml"):
        load_yaml(tmp_path / "config.yaml")


def test_config_without_a_newer_setting_has_its_default(tmp_path: Path) -> None:
    config = make_config("dataset=text", "dataset.path=a.txt")
    path = tmp_path / "config.yaml"
    text = save_yaml(config)
    assert "  nul: refuse\n" in text
    path.write_text(text.replace("  nul: refuse\n", ""))
    assert load_yaml(path) == config
    allowed = make_config("dataset=text", "dataset.path=a.txt", "dataset.nul=allow")
    assert identity(allowed) == identity(config)


CONFIG = make_config()
STRINGS = st.one_of(st.text(), st.text(alphabet=st.sampled_from("\\${}?:'\"#-~ \n1e.x\u2028é")))


@given(path=STRINGS, project=STRINGS, tag=STRINGS)
@example("???", "???", "???")
@example("a${b}.txt", "${oc.env:HOME}", "\\${x")
@example("1e-3", "null", "true")
@example("2024-01-01", "1:30", "0x1F")
@example("\udce9.txt", "\0", "\ufeff")
@example("\x85", "\u2028a\u2029", "a\r\nb\x85c")
@settings(max_examples=15)
def test_any_string_survives_saving_and_loading(path: str, project: str, tag: str) -> None:
    config = dataclasses.replace(
        CONFIG,
        dataset=TextConfig(path=path, val_path=tag),
        mask=PatternConfig(pattern=[tag, project]),
        logger=WandbConfig(project=project, tags=[tag, path]),
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(save_yaml(config), encoding="utf-8")
        assert load_yaml(file) == config
        assert plain_settings(file) == flat(config)
    assert to_config(to_omegaconf(config)) == config
