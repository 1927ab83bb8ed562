import os
from pathlib import Path

import pytest

from nanolm.errors import CheckpointError, NanolmError, RunError, SettingsError
from nanolm.inference.load import load_run
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.trainer import train
from tests.helpers import SMALL, make_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best checkpoint is not its last."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text.txt"
    text.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(200)))
    run = RunDirectory(folder / "run")
    run.path.mkdir()
    overrides = ("trainer.max_steps=30", "trainer.eval_every=10", "trainer.save_every=10")
    train(make_config(*SMALL, "dataset=text", f"dataset.path={text}", *overrides), run)
    return run.path


def test_the_best_the_last_and_any_step_can_be_chosen(trained: Path) -> None:
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
def test_a_device_that_does_not_exist_is_refused(trained: Path, device: str) -> None:
    with pytest.raises(SettingsError, match=r"where: --device[\s\S]*hint: .*cpu"):
        load_run(str(trained), device=device)


def test_a_run_without_a_checkpoint_says_how_to_go_on(trained: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "tokenizer.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    with pytest.raises(RunError, match=r"no checkpoint yet[\s\S]*nanolm train resume="):
        load_run(str(tmp_path))


def test_a_damaged_checkpoint_is_named_not_replaced(trained: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    os.truncate(copy / "checkpoints" / "step-00000030" / checkpoint.WEIGHTS, 100)
    for which in ("last", "30"):
        with pytest.raises(CheckpointError, match=r"step-00000030: model\.safetensors has 100 bytes"):
            load_run(str(copy), which)


def test_a_run_of_a_plugin_says_which_flag_names_it(trained: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "tokenizer.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("name: adamw", "name: mine"))
    with pytest.raises(NanolmError, match=r"optimizer 'mine', which is not registered[\s\S]*--plugins my_module"):
        load_run(str(tmp_path))
