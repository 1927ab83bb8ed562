import sys
from pathlib import Path

import pytest

from nanolm.compose import compose_command, compose_jobs, continue_run, hidden_options, quoted
from nanolm.config.dataset import TextConfig
from nanolm.config.fields import flat
from nanolm.config.optimizer import AdamWConfig
from nanolm.config.yaml_io import save_yaml
from nanolm.errors import SettingsError
from tests.helpers import make_config


def problems(*overrides: str, multirun: bool = False) -> str:
    with pytest.raises(SettingsError) as caught:
        compose_command(overrides, multirun=multirun)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer=adamm", "no optimizer is called 'adamm'\n  where: optimizer\n  hint:  did you mean adam?"),
        ("trainer.max_step=5", "there is no setting 'trainer.max_step'"),
        ("trainer.max_step=5", "did you mean trainer.max_steps?"),
        ("optimizr=adamw", "did you mean optimizer?"),
        ("lr=3", "did you mean optimizer.lr?"),
        ("optimizer.lr=abc", "optimizer.lr is 'abc', and must be a number\n  where: optimizer.lr=abc"),
        ("trainer.precision=fp8", "is 'fp8', and must be one of auto, fp32, tf32, bf16, fp16"),
        ("+optimizer.lrr=1", "there is no setting 'optimizer.lrr'"),
        ("+model._target_=os.system", "there is no setting 'model._target_'"),
        ("trainer", "cannot read 'trainer'"),
        ("trainer.keep_last=~", "write null for no value: trainer.keep_last=null"),
        ("logger.project=a#b", "is quoted twice: 'logger.project='\"'\"'a#b'\"'\"''"),
        ("model=gpt,gpt2", "add -m to run every combination"),
        ("dataset=text", "dataset.path has no value"),
    ],
)
def test_a_mistake_comes_with_its_place_and_remedy(override: str, expected: str) -> None:
    assert expected in problems(override)


def test_all_mistakes_are_reported_together() -> None:
    text = problems("optimizer=adamm", "trainer.max_step=5", "model.dropout=x", "size.n_heads=3", "lr=1")
    for part in ("'adamm'", "'trainer.max_step'", "'x'", "size.n_heads (3)", "'lr'"):
        assert part in text


@pytest.mark.parametrize(
    "word", ["sweep=lr", "sweep.fail_fast=true", "hydra/sweeper=optuna", "hydra.sweeper.params={}"]
)
def test_what_is_said_of_a_sweep_is_refused_where_there_is_one_run(word: str) -> None:
    text = problems(word, "optimizer=adamm")
    assert f"{word} applies to sweeps only" in text
    assert "'adamm'" in text
    assert f"{word} applies to sweeps only" in problems(word)


def test_a_key_that_slips_past_hydra_is_found() -> None:
    assert "there is no setting 'seeed'" in problems("+seeed=1")


def test_every_value_of_a_sweep_is_checked() -> None:
    text = problems("model=gpt,gtp2", "optimizer.lr=1e-3,fast", multirun=True)
    assert "no model is called 'gtp2'" in text
    assert "'fast'" in text
    assert compose_command(["model=gpt,gpt2", "optimizer.lr=1e-3,3e-3"], multirun=True).config.optimizer.lr == 1e-3


def test_a_users_folder_adds_options(tmp_path: Path) -> None:
    folder = tmp_path / "my configs"
    (folder / "optimizer").mkdir(parents=True)
    (folder / "optimizer" / "fast.yaml").write_text("defaults:\n  - adamw\n  - _self_\nlr: 0.5\n")
    line = compose_command(["optimizer=fast"], str(folder))
    assert isinstance(line.config.optimizer, AdamWConfig)
    assert line.config.optimizer.lr == 0.5
    with pytest.raises(
        SettingsError,
        # Another test of the process may have registered one of its own.
        match=r"did you mean fast\? \(one of: adafactor, (\w+, )?adam, adamw, fast, lion, muon, schedule_free, sgd\)",
    ):
        compose_command(["optimizer=fats"], str(folder))
    with pytest.raises(SettingsError, match="there is no folder"):
        compose_command([], str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("config_dir", ["mine", "empty"])
def test_config_dir_and_searchpath_are_both_searched(
    config_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine" / "size").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine" / "size" / "own.yaml").write_text("defaults: [tiny, _self_]\nd_model: 24\n")
    other = "empty" if config_dir == "mine" else "mine"
    words = [f"hydra.searchpath=~/{other}", "size=own"]
    assert compose_command(words, str(tmp_path / config_dir)).config.size.d_model == 24
    jobs = compose_jobs([["size=own", "seed=1"], ["seed=2"]], str(tmp_path / config_dir), words[:1])
    assert [job.config.size.d_model for job in jobs] == [24, 128]
    for word in (f"hydra.searchpath=[{tmp_path}/none]", "hydra.searchpath="):
        assert "there is no folder" in problems(word)


def test_a_users_file_that_ours_hides_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gpt.yaml").write_text("dropout: 0.5\n")
    (tmp_path / "model" / "mine.yaml").write_text("dropout: 0.5\n")
    assert hidden_options(str(tmp_path)) == ["model/gpt.yaml"]


def test_the_line_knows_what_it_was_given() -> None:
    line = compose_command(["model=gpt2", "trainer.max_steps=7", "hydra.run.dir=here"])
    assert {"trainer.max_steps", "model.bias"} < line.given
    assert not any(key.startswith("size") for key in line.given)
    assert (line.run_directory, line.run_directory_is_given) == (Path("here"), True)
    assert line.choices["model"] == "gpt2"
    assert "gpt_python_docs" in compose_command([]).run_directory.name


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


def test_a_plugin_is_an_option_like_any_other(plugin: str) -> None:
    line = compose_command([f"plugins=[{plugin}]", f"optimizer={plugin}", "optimizer.strength=3", f"mask={plugin}"])
    assert flat(line.config)["optimizer.strength"] == 3
    assert line.config.mask.name == plugin
    assert "there is no setting 'optimizer.strenth'" in problems(
        f"plugins=[{plugin}]", f"optimizer={plugin}", "optimizer.strenth=3"
    )


def test_an_experiment_may_name_its_plugins(plugin: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        f"# @package _global_\ndefaults:\n  - override /mask: {plugin}\nplugins: [{plugin}]\n"
    )
    assert compose_command(["experiment=mine"], str(tmp_path)).config.mask.name == plugin


def test_a_plugin_that_is_missing_or_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the plugin 'no_such_thing' was not found" in problems("plugins=[no_such_thing]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("fails_on_import.py").write_text("1 / 0\n")
    Path("ends_on_import.py").write_text("import sys\n\nsys.exit(3)\n")
    text = problems("plugins=[fails_on_import,ends_on_import,no_such_thing,./fails_on_import.py]")
    assert f"ZeroDivisionError: division by zero\n  where: {tmp_path}/fails_on_import.py:1\n" in text
    assert f"SystemExit: 3\n  where: {tmp_path}/ends_on_import.py:3\n" in text
    assert "'no_such_thing' was not found" in text
    assert "write the name of the module: plugins=[fails_on_import]" in text
    assert "the environment variable NO_SUCH is not set" in problems("plugins=[${oc.env:NO_SUCH}]")


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


def test_resume_names_another_model_without_its_settings() -> None:
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
    line = compose_command(["resume=x", *parts, "scheduler.parts.0.gamma=0.25"])
    assert "scheduler.parts" in line.given
    with pytest.raises(SettingsError, match=r"the run was trained with scheduler\.parts"):
        continue_run(make_config(*parts), line)


def test_a_part_of_a_list_is_a_setting() -> None:
    parts = ["scheduler=product", "scheduler.parts=[{name:step,gamma:0.5},cosine]"]
    config = make_config(*parts, "scheduler.parts.0.gamma=0.25")
    assert flat(config)["scheduler.parts"] == [{"name": "step", "gamma": 0.25}, "cosine"]
    text = problems(*parts, "scheduler.parts.0.gamma=0.25", "trainer.max_step=3")
    assert "trainer.max_step" in text
    assert "gamma" not in text
    assert "scheduler.parts" in problems(*parts, "scheduler.parts.9.gamma=0.25")


@pytest.mark.parametrize(
    "value", ["plain", "with space", "it's", 'a "quote"', "back\\slash", "k=v,w", "${x}"[:1] + "x"]
)
def test_quoting_carries_any_path(value: str) -> None:
    assert str(compose_command([f"hydra.run.dir={quoted(value)}"]).run_directory) == value


def test_jobs_compose_as_their_lines_do(tmp_path: Path) -> None:
    jobs = [
        ["model=bigram", "optimizer.lr=1e-3", "seed=3", "trainer.clip_norm=null"],
        ["model=gpt2", "optimizer.beta2=0.99", "trainer.precision=fp32", "size.n_layers=3"],
        ["experiment=ladder/blocks", "trainer.max_steps=7", "++seed=4"],
        ["scheduler=product", "scheduler.parts=[cosine,step]", "logger.project='a, b'", "logger.group=null"],
        ["mask=pattern", "mask.pattern=SL", "model=bigram", "seed=3"],
    ]
    assert [job.config for job in compose_jobs(jobs)] == [compose_command(words).config for words in jobs]


@pytest.mark.parametrize(
    ("words", "hidden"),
    [
        (("optimizer.lr_multipliers={hidden:2}", "++optimizer.lr_multipliers.hidden=3"), 3),
        (("++optimizer.lr_multipliers.hidden=3", "optimizer.lr_multipliers={hidden:2}"), 2),
    ],
)
def test_jobs_are_set_in_the_order_of_their_line(words: tuple[str, ...], hidden: int) -> None:
    (job,) = compose_jobs([words])
    assert job.config.optimizer.lr_multipliers.hidden == hidden
    assert job.config == compose_command(words).config


def test_a_key_may_be_added_to_a_part_of_a_list() -> None:
    parts = ("scheduler=chain", "scheduler.boundaries=[100]", "scheduler.parts=[{name:step},cosine_restarts]")
    lines = [(*parts, f"+scheduler.parts.0.gamma={gamma}") for gamma in (0.5, 0.6)]
    assert [job.config.scheduler.parts[0]["gamma"] for job in compose_jobs(lines)] == [0.5, 0.6]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sweep=lr,seeds", "sweep=lr,seeds names several sweeps"),
        ("hydra.sweep.dir=a,b", "hydra.sweep.dir=a,b gives several values, but a sweep has only one"),
        ("hydra.sweeper.fail_fast=1,2", "sweep.fail_fast=1,2 gives several values, but a sweep has only one"),
        ("hydra/launcher=basic,joblib", "hydra/launcher=basic,joblib gives several values"),
    ],
)
def test_of_what_a_sweep_has_one_there_is_one_value(word: str, message: str) -> None:
    assert message in problems(word, multirun=True)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("${oc.env:NANOLM_NOPE}/x", "the environment variable NANOLM_NOPE is not set"),
        ("${nosuch}", "there is no setting 'nosuch'"),
        ("${nores:3}", "there is no resolver 'nores'"),
        ("${dataset.path}", "it refers to itself"),
        ("'${'", "its ${...} is malformed"),
    ],
)
def test_interpolations_that_cannot_be_resolved_are_explained(value: str, reason: str) -> None:
    text = problems("dataset=text", f"dataset.path={value}")
    assert f"dataset.path cannot be resolved: {reason}" in text
    assert text.count("where:") == 1


def test_unresolved_interpolations_are_reported_together() -> None:
    text = problems("trainer.max_steps=${nosuch}", "hydra.run.dir=${oc.env:NANOLM_NOPE}/x")
    assert "trainer.max_steps cannot be resolved" in text
    assert "hydra.run.dir cannot be resolved" in text
    assert "dataset.path cannot be resolved" in problems(
        "dataset=text", "dataset.path=${nosuch},b", "seed=1,2", multirun=True
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+experiment=bigram"], "hint:  experiment=bigram"),
        (["++model=gpt"], "hint:  model=gpt"),
        (["model@x=gpt"], "hint:  model=gpt"),
        (["~optimizer"], "every run has one optimizer"),
        (["optimizer=null"], "every run has one optimizer"),
        (["~optimizer.lr"], "a setting cannot be removed"),
        (["+optimizer.lr=1"], "optimizer.lr exists already and needs no +"),
        (["plugins=[1,null]"], "plugins holds 1, which is not the name of a module"),
        (["plugins={a:1}"], "plugins is {'a': 1}"),
    ],
)
def test_forms_of_hydra_without_a_meaning_are_explained(words: list[str], message: str) -> None:
    text = problems(*words)
    assert message in text
    assert f"where: {words[0]}" in text


def test_experiment_null_is_no_experiment() -> None:
    assert compose_command(["experiment=null", "seed=3"]).config.seed == 3


@pytest.mark.parametrize("options", ["model=gpt,bigram", "model=bigram,gpt"])
def test_the_option_that_lacks_a_setting_is_named(options: str) -> None:
    text = problems(options, "optimizer=sgd,adamw", "model.dropout=0.1", multirun=True)
    assert "model=bigram has no setting 'model.dropout', and model=gpt of the same sweep has it" in text
    assert text.count("where:") == 1


def test_the_last_choice_of_a_group_counts() -> None:
    text = problems("logger=none", "logger=wandb", "logger.mode=of", "model=bigram", "model=gpt", "model.dropout=x")
    assert "logger.mode is 'of', and must be one of" in text
    assert "model.dropout is 'x', and must be a number" in text
    assert "sweep" not in text


def test_a_hint_names_options_and_none_of_a_wrong_choice() -> None:
    text = problems("model=bigram", "model.dropout=0.1", "optimizer.momentum=1", "dataset=txt", "dataset.path=a")
    assert "it is a setting of bare, gpt, gpt2, gpt3\n" in text
    assert "it is a setting of muon, sgd" in text
    assert "no dataset is called 'txt'" in text
    assert "dataset.path" not in text


def test_a_sweepers_value_of_another_type_is_explained() -> None:
    text = problems("hydra/sweeper=optuna", "hydra.sweeper.n_trials=abc", multirun=True)
    assert "hydra.sweeper.n_trials is 'abc', and must be a whole number" in text


def test_jobs_name_the_option_that_lacks_a_setting() -> None:
    with pytest.raises(SettingsError, match=r"model=bigram has no setting 'model\.dropout', and another job"):
        compose_jobs([["model=gpt", "model.dropout=0.1"], ["model=bigram", "model.dropout=0.1"]])


def test_a_resumed_line_reads_the_runs_own_options(tmp_path: Path) -> None:
    saved = make_config("dataset=text", "dataset.path=a.txt", "model=bigram", "optimizer=sgd", "size.n_layers=3")
    (tmp_path / "config.yaml").write_text(save_yaml(saved))
    words = [f"resume={tmp_path}", "dataset.path=moved ${x.txt", "optimizer.momentum=0.5", "trainer.max_steps=9"]
    line = compose_command([*words, "hydra.run.dir=${model.name}"], saved=tmp_path / "config.yaml")
    assert line.config.dataset == TextConfig(path="moved ${x.txt")
    assert (line.config.model, line.config.size) == (saved.model, saved.size)
    assert line.run_directory == Path("bigram")
    with pytest.raises(SettingsError, match=r"the run was trained with optimizer\.momentum=0"):
        continue_run(saved, line)
    _, changes = continue_run(saved, line, is_fork=True)
    assert [change.split(":")[0] for change in changes] == ["dataset.path", "optimizer.momentum", "trainer.max_steps"]
    with pytest.raises(SettingsError, match=r"the run has no setting model\.dropout: its model is bigram"):
        compose_command([*words, "model.dropout=0.1"], saved=tmp_path / "config.yaml")


WRONG_VALUES = {
    "trainer.clip_norm=none": "is 'none', and must be a number or null\n  where: trainer.clip_norm=none\n",
    "trainer.ema_decay=off": "hint:  trainer.ema_decay=null disables the average of the weights",
    "++trainer.clip_value=false": "hint:  trainer.clip_value=null disables clipping by value",
    "trainer.eval_every=no": "hint:  trainer.eval_every=1000 (trainer.max_steps) evaluates only at the end",
    "trainer.keep_last=": "trainer.keep_last is empty, and must be a whole number or null",
    "trainer.device=[a]": "trainer.device is ['a'], and must be a string",
    "trainer.batch_size=1e3": "hint:  trainer.batch_size=1000\n",
    "seed=1.5": "seed is 1.5, and must be a whole number",
    "trainer.compile=maybe": "is 'maybe', and must be true or false",
    "trainer.sampling=epoch": "hint:  trainer.sampling=epochs\n",
    "logger.tags=a": "logger.tags is 'a', and must be a list of strings, as in [a,b]",
    "optimizer.lr_multipliers=3": "is 3, and must be settings, as key: value",
    "optimizer.lr_multipliers={bias:x}": "optimizer.lr_multipliers.bias is 'x', and must be a number",
    "optimizer.lr_multipliers={head:1,hid:2}": "there is no setting 'optimizer.lr_multipliers.hid'",
}


def test_values_of_another_type_are_explained() -> None:
    text = problems(*WRONG_VALUES)
    for message in WRONG_VALUES.values():
        assert message in text + "\n"
    assert "it resolves to 'auto', which does not fit" in problems("trainer.clip_norm=${trainer.device}")
