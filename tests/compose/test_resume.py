from pathlib import Path

import pytest

from nanolm.compose import compose_command, continue_run
from nanolm.config.dataset import TextConfig
from nanolm.config.model import LoraConfig
from nanolm.config.yaml_io import save_yaml
from nanolm.errors import SettingsError
from tests.helpers import make_config


def test_resume_applies_runtime_changes_and_refuses_others() -> None:
    saved = make_config("optimizer.lr=0.5", "size=small", "trainer.max_steps=10")
    config, changes = continue_run(saved, compose_command(["resume=x", "trainer.max_steps=20", "logger=none"]))
    assert (config.trainer.max_steps, config.optimizer.lr, config.size.n_layers) == (20, 0.5, 6)
    assert config.logger.name == "none"
    assert "trainer.max_steps: 10 -> 20" in changes
    same, changes = continue_run(saved, compose_command(["resume=x", "optimizer.lr=0.5", "size=small"]))
    assert changes == []
    assert same.optimizer == saved.optimizer
    with pytest.raises(SettingsError) as caught:
        continue_run(saved, compose_command(["resume=x", "optimizer.lr=0.1", "model=gpt2", "seed=3"]))
    for part in ("optimizer.lr=0.5, and the command line sets 0.1", "model.positions=rotary", "seed=1337"):
        assert part in str(caught.value)


def test_resume_reports_another_model_without_its_settings() -> None:
    with pytest.raises(SettingsError) as caught:
        continue_run(make_config("model=gpt"), compose_command(["resume=x", "model=bigram"]))
    assert "the run was trained with model.name=transformer, and the command line sets bigram" in str(caught.value)
    assert "null" not in str(caught.value)


def test_resume_refuses_changes_within_a_setting() -> None:
    saved = make_config("scheduler=plateau", "optimizer.lr_multipliers.head=0.5")
    for override in (
        "trainer.eval_every=3",
        "optimizer.lr_multipliers.head=0.7",
        "optimizer.lr_multipliers={head:0.7}",
    ):
        with pytest.raises(SettingsError, match="the run was trained with"):
            continue_run(saved, compose_command(["resume=x", override]))
    parts = ["scheduler=product", "scheduler.parts=[{name:step,gamma:0.5}]"]
    command = compose_command(["resume=x", *parts, "scheduler.parts.0.gamma=0.25"])
    assert "scheduler.parts" in command.given
    with pytest.raises(SettingsError, match=r"the run was trained with scheduler\.parts"):
        continue_run(make_config(*parts), command)


def test_resumed_command_uses_the_options_of_the_run(tmp_path: Path) -> None:
    saved = make_config("dataset=text", "dataset.path=a.txt", "model=bigram", "optimizer=sgd", "size.n_layers=3")
    (tmp_path / "config.yaml").write_text(save_yaml(saved))
    words = [f"resume={tmp_path}", "dataset.path=moved ${x.txt", "optimizer.momentum=0.5", "trainer.max_steps=9"]
    command = compose_command([*words, "hydra.run.dir=${model.name}"], saved=tmp_path / "config.yaml")
    assert command.config.dataset == TextConfig(path="moved ${x.txt")
    assert (command.config.model, command.config.size) == (saved.model, saved.size)
    assert command.run_directory == Path("bigram")
    with pytest.raises(SettingsError, match=r"the run was trained with optimizer\.momentum=0"):
        continue_run(saved, command)
    _, changes = continue_run(saved, command, is_fork=True)
    assert [change.split(":")[0] for change in changes] == ["dataset.path", "optimizer.momentum", "trainer.max_steps"]
    with pytest.raises(SettingsError, match=r"the run has no setting model\.dropout: its model is bigram"):
        compose_command([*words, "model.dropout=0.1"], saved=tmp_path / "config.yaml")


def test_fork_applies_the_settings_of_an_experiment(tmp_path: Path) -> None:
    saved = make_config("dataset=text", "dataset.path=a.txt", "model=gpt2", "size.n_layers=3", "trainer.ema_decay=0.9")
    (tmp_path / "config.yaml").write_text(save_yaml(saved))
    words = ["experiment=finetune/shakespeare", "optimizer.lr=1e-3", "model.lora.rank=4"]
    command = compose_command([f"fork={tmp_path}", *words], saved=tmp_path / "config.yaml")
    forked, _ = continue_run(saved, command, is_fork=True)
    assert forked == command.config
    # Of the experiment, with the overrides on top.
    assert (forked.optimizer.lr, forked.optimizer.beta2, forked.scheduler.name) == (1e-3, 0.95, "constant")
    assert (forked.trainer.batch_size, forked.trainer.max_steps, forked.trainer.eval_every) == (32, 20, 5)
    assert forked.dataset == make_config("dataset=tiny_shakespeare").dataset
    # Of the parent.
    saved.model.lora.rank = 4
    assert (forked.model, forked.size, forked.tokenizer) == (saved.model, saved.size, saved.tokenizer)
    assert forked.trainer.ema_decay == 0.9
    # Without adapters, their other settings are the defaults again.
    saved.model.lora.alpha = 3.0
    (tmp_path / "config.yaml").write_text(save_yaml(saved))
    command = compose_command([f"fork={tmp_path}", "model.lora.rank=null"], saved=tmp_path / "config.yaml")
    assert continue_run(saved, command, is_fork=True)[0].model.lora == command.config.model.lora == LoraConfig()
