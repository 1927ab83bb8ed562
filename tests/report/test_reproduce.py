import shlex
from pathlib import Path
from typing import Any

import pytest

from nanolm.analysis.collection import find, plain_settings
from nanolm.compose import compose_command
from nanolm.config.fields import flat
from nanolm.config.identity import identity
from nanolm.config.yaml_io import load_yaml, save_yaml
from nanolm.report.reproduce import command, fork_command
from tests.helpers import mostly_slow

OVERRIDES = (
    [],
    ["model=gpt2", "size=ladder", "optimizer=muon", "seed=7"],
    ["dataset=text", "dataset.path='my books/a, b {1}.txt'", "dataset.val_fraction=0.2", "logger=none"],
    ["dataset=text", r"dataset.path='\${x} \\\${oc.env:HOME}.txt'"],
    ["mask=pattern", "mask.pattern=[strided,prefix]", "mask.stride=3", "optimizer.eps=1e-9", "model.bias=true"],
    ["tokenizer=bpe", "tokenizer.vocab_size=300", "scheduler=trapezoid", "trainer.save_every_minutes=2.5"],
    ["scheduler=chain", "scheduler.boundaries=[20]", "scheduler.parts=[{name:linear},{name:step,step_size:5}]"],
)


@pytest.mark.parametrize("overrides", mostly_slow(OVERRIDES, quick=OVERRIDES[1::2]), ids=" ".join)
def test_command_has_exactly_the_settings(overrides: list[str], tmp_path: Path) -> None:
    composed = compose_command(overrides)
    (tmp_path / "config.yaml").write_text(save_yaml(composed.config))
    found = command(plain_settings(tmp_path / "config.yaml"), composed.choices)
    assert found is not None
    program, name, *found_overrides = shlex.split(found)
    assert (program, name) == ("nanolm", "train")
    again = compose_command(found_overrides).config
    assert flat(again) == flat(load_yaml(tmp_path / "config.yaml"))
    assert identity(again) == identity(composed.config)
    if not overrides:
        assert found_overrides == []


def test_real_runs_have_a_command(pair: Path) -> None:
    for run in find([pair]):
        found = command(run.settings, run.summary.choices)
        assert found is not None
        assert identity(compose_command(shlex.split(found)[2:]).config) == run.summary.identity


def test_settings_without_a_command() -> None:
    settings: dict[str, Any] = flat(compose_command([]).config)
    assert command({}, {}) is None
    assert command({**settings, "plugins": ["mine"]}, {}) is None
    assert command(settings, {"model": "gone"}) is None
    assert command({**settings, "model.gone": 1}, {}) is None


def test_fork_starts_from_the_checkpoint_of_its_parent(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "config.yaml").write_text(save_yaml(compose_command([]).config))
    (tmp_path / "config.yaml").write_text(save_yaml(compose_command(["optimizer.lr=0.5"]).config))
    settings = plain_settings(tmp_path / "config.yaml")
    found = fork_command(settings, {"run": str(parent), "step": 20})
    assert found is not None
    checkpoint = f"resume={parent / 'checkpoints' / 'step-00000020'}"
    assert shlex.split(found) == ["nanolm", "train", checkpoint, "fork=true", "optimizer.lr=0.5"]
    assert fork_command(settings, {"run": str(tmp_path / "gone"), "step": 20}) is None
    assert fork_command({**settings, "optimizer.gone": 1}, {"run": str(parent), "step": 20}) is None
