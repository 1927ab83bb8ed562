import os
import shutil
from pathlib import Path

import pytest

from nanolm.errors import CheckpointError, NanolmError, RunError, SettingsError
from nanolm.inference.load import load_run
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints import files as checkpoint


def test_best_last_and_any_step_can_be_loaded(trained: Path) -> None:
    best = RunDirectory(trained).read_summary().best_step
    assert load_run(str(trained)).step == best
    assert load_run(str(trained), "last").step == 30
    assert load_run(str(trained), "20").step == 20
    assert not load_run(str(trained)).model.training
    with pytest.raises(CheckpointError, match="there is no checkpoint of step 7"):
        load_run(str(trained), "7")
    for which in ("newest", "²", "", "-1", "1" * 30, "9" * 5000):
        with pytest.raises(SettingsError, match=f"--checkpoint is '{which[:20]}"):
            load_run(str(trained), which)


@pytest.mark.parametrize("device", ["foo", "cuda:x", "CPU", "", "cuda:-1", "cuda:²", "cuda:99999999999", "cpu:0"])
def test_unknown_devices_are_errors(trained: Path, device: str) -> None:
    with pytest.raises(SettingsError, match=r"where: --device[\s\S]*hint: .*cpu"):
        load_run(str(trained), device=device)


def test_missing_checkpoint_suggests_resuming(trained: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "tokenizer.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    with pytest.raises(RunError, match=r"no checkpoint yet[\s\S]*nanolm train resume="):
        load_run(str(tmp_path))


def test_damaged_checkpoint_is_an_error(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    os.truncate(copy / "checkpoints" / "step-00000030" / checkpoint.WEIGHTS, 100)
    for which in ("last", "30"):
        with pytest.raises(CheckpointError, match=r"step-00000030: model\.safetensors has 100 bytes"):
            load_run(str(copy), which)


def test_unknown_plugin_suggests_the_option(trained: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "tokenizer.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("name: muon", "name: mine"))
    with pytest.raises(NanolmError, match=r"optimizer 'mine', which is not registered[\s\S]*--plugins my_module"):
        load_run(str(tmp_path))
