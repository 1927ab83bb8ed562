import sys
from pathlib import Path

import pytest

from nanolm.compose import compose_command
from nanolm.config.fields import flat
from nanolm.errors import SettingsError


def problems(*overrides: str, multirun: bool = False) -> str:
    with pytest.raises(SettingsError) as caught:
        compose_command(overrides, multirun=multirun)
    return str(caught.value)


PLUGIN = """
from dataclasses import dataclass
import torch
from nanolm.config.optimizer import OptimizerConfig
from nanolm.registry import MASKS, OPTIMIZERS

@dataclass
class SignConfig(OptimizerConfig):
    name: str = "sign"
    strength: float = 2.0

@OPTIMIZERS.register("sign", schema=SignConfig)
def sign(model, config):
    return torch.optim.SGD(model.parameters(), lr=config.lr)

@MASKS.register("itself")
def itself(query, key, config):
    return query == key
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"plugin_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(PLUGIN.replace('"sign"', f'"{name}"').replace('"itself"', f'"{name}"'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_plugin_registers_options(plugin: str) -> None:
    command = compose_command([f"plugins=[{plugin}]", f"optimizer={plugin}", "optimizer.strength=3", f"mask={plugin}"])
    assert flat(command.config)["optimizer.strength"] == 3
    assert command.config.mask.name == plugin
    assert "there is no setting 'optimizer.strenth'" in problems(
        f"plugins=[{plugin}]", f"optimizer={plugin}", "optimizer.strenth=3"
    )


def test_experiment_names_its_plugins(plugin: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        f"# @package _global_\ndefaults:\n  - override /mask: {plugin}\nplugins: [{plugin}]\n"
    )
    assert compose_command(["experiment=mine"], str(tmp_path)).config.mask.name == plugin


def test_missing_and_failing_plugins_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the plugin 'no_such_thing' was not found" in problems("plugins=[no_such_thing]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("fails_on_import.py").write_text("1 / 0\n")
    Path("ends_on_import.py").write_text("import sys\n\nsys.exit(3)\n")
    Path("fails_in_library.py").write_text("import json\n\njson.loads('{')\n")
    text = problems("plugins=[fails_on_import,ends_on_import,fails_in_library,no_such_thing,./fails_on_import.py]")
    assert f"ZeroDivisionError: division by zero\n  where: {tmp_path}/fails_on_import.py:1\n" in text
    assert f"SystemExit: 3\n  where: {tmp_path}/ends_on_import.py:3\n" in text
    assert f"\n  where: {tmp_path}/fails_in_library.py:3\n" in text
    assert "'no_such_thing' was not found" in text
    assert "write the name of the module: plugins=[fails_on_import]" in text
    assert "the environment variable NO_SUCH is not set" in problems("plugins=[${oc.env:NO_SUCH}]")
