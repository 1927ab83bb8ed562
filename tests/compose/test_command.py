from pathlib import Path

import pytest

from nanolm.compose import compose_command, compose_jobs, hidden_options, quoted
from nanolm.config.fields import flat
from nanolm.config.optimizer import AdamWConfig
from nanolm.errors import SettingsError
from tests.helpers import make_config, mostly_slow


def problems(*overrides: str, multirun: bool = False) -> str:
    with pytest.raises(SettingsError) as caught:
        compose_command(overrides, multirun=multirun)
    return str(caught.value)


MISTAKES = [
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
]


@pytest.mark.parametrize(("override", "expected"), mostly_slow(MISTAKES, quick=MISTAKES[::3]))
def test_mistake_has_its_place_and_a_hint(override: str, expected: str) -> None:
    assert expected in problems(override)


def test_all_mistakes_are_reported() -> None:
    text = problems("optimizer=adamm", "trainer.max_step=5", "model.dropout=x", "size.n_heads=3", "lr=1")
    for part in ("'adamm'", "'trainer.max_step'", "'x'", "size.n_heads (3)", "'lr'"):
        assert part in text


@pytest.mark.parametrize(
    "word",
    mostly_slow(
        ("sweep=lr", "sweep.fail_fast=true", "hydra/sweeper=optuna", "hydra.sweeper.params={}"), quick=("sweep=lr",)
    ),
)
def test_sweep_options_are_refused_without_multirun(word: str) -> None:
    text = problems(word, "optimizer=adamm")
    assert f"{word} applies to sweeps only" in text
    assert "'adamm'" in text
    assert f"{word} applies to sweeps only" in problems(word)


def test_added_unknown_key_is_refused() -> None:
    assert "there is no setting 'seeed'" in problems("+seeed=1")


def test_every_value_of_a_sweep_is_checked() -> None:
    text = problems("model=gpt,gtp2", "optimizer.lr=1e-3,fast", multirun=True)
    assert "no model is called 'gtp2'" in text
    assert "'fast'" in text
    assert compose_command(["model=gpt,gpt2", "optimizer.lr=1e-3,3e-3"], multirun=True).config.optimizer.lr == 1e-3


def test_config_dir_adds_options(tmp_path: Path) -> None:
    folder = tmp_path / "my configs"
    (folder / "optimizer").mkdir(parents=True)
    (folder / "optimizer" / "fast.yaml").write_text("defaults:\n  - adamw\n  - _self_\nlr: 0.5\n")
    command = compose_command(["optimizer=fast"], str(folder))
    assert isinstance(command.config.optimizer, AdamWConfig)
    assert command.config.optimizer.lr == 0.5
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


def test_hidden_user_option_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gpt.yaml").write_text("dropout: 0.5\n")
    (tmp_path / "model" / "mine.yaml").write_text("dropout: 0.5\n")
    assert hidden_options(str(tmp_path)) == ["model/gpt.yaml"]


def test_given_settings_are_known() -> None:
    command = compose_command(["model=gpt2", "trainer.max_steps=7", "hydra.run.dir=here"])
    assert {"trainer.max_steps", "model.bias"} < command.given
    assert not any(key.startswith("size") for key in command.given)
    assert (command.run_directory, command.run_directory_is_given) == (Path("here"), True)
    assert command.choices["model"] == "gpt2"
    assert "gpt_python_docs" in compose_command([]).run_directory.name


def test_list_element_can_be_overridden() -> None:
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
def test_quoted_path_is_unchanged(value: str) -> None:
    assert str(compose_command([f"hydra.run.dir={quoted(value)}"]).run_directory) == value


def test_key_can_be_added_to_a_list_element() -> None:
    parts = ("scheduler=chain", "scheduler.boundaries=[100]", "scheduler.parts=[{name:step},cosine_restarts]")
    lines = [(*parts, f"+scheduler.parts.0.gamma={gamma}") for gamma in (0.5, 0.6)]
    assert [job.config.scheduler.parts[0]["gamma"] for job in compose_jobs(lines)] == [0.5, 0.6]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("word", "message"),
    mostly_slow(
        [
            ("sweep=lr,seeds", "sweep=lr,seeds names several sweeps"),
            ("hydra.sweep.dir=a,b", "hydra.sweep.dir=a,b gives several values, but a sweep has only one"),
            ("hydra.sweeper.fail_fast=1,2", "sweep.fail_fast=1,2 gives several values, but a sweep has only one"),
            ("hydra/launcher=basic,local", "hydra/launcher=basic,local gives several values"),
        ],
        quick=[("sweep=lr,seeds", "sweep=lr,seeds names several sweeps")],
    ),
)
def test_sweep_wide_option_has_one_value(word: str, message: str) -> None:
    assert message in problems(word, multirun=True)


@pytest.mark.parametrize(
    ("value", "reason"),
    mostly_slow(
        [
            ("${oc.env:NANOLM_NOPE}/x", "the environment variable NANOLM_NOPE is not set"),
            ("${nosuch}", "there is no setting 'nosuch'"),
            ("${nores:3}", "there is no resolver 'nores'"),
            ("${dataset.path}", "it refers to itself"),
            ("'${'", "its ${...} is malformed"),
        ],
        quick=[("${nosuch}", "there is no setting 'nosuch'")],
    ),
)
def test_unresolved_interpolation_is_explained(value: str, reason: str) -> None:
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
    mostly_slow(
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
        quick=[(["~optimizer"], "every run has one optimizer"), (["plugins={a:1}"], "plugins is {'a': 1}")],
    ),
)
def test_unsupported_override_forms_are_explained(words: list[str], message: str) -> None:
    text = problems(*words)
    assert message in text
    assert f"where: {words[0]}" in text


def test_experiment_null_selects_none() -> None:
    assert compose_command(["experiment=null", "seed=3"]).config.seed == 3


@pytest.mark.parametrize("options", ["model=gpt,bigram", "model=bigram,gpt"])
def test_option_without_the_setting_is_named(options: str) -> None:
    text = problems(options, "optimizer=sgd,adamw", "model.dropout=0.1", multirun=True)
    assert "model=bigram has no setting 'model.dropout', and model=gpt of the same sweep has it" in text
    assert text.count("where:") == 1


def test_last_choice_of_a_group_applies() -> None:
    text = problems("logger=none", "logger=wandb", "logger.mode=of", "model=bigram", "model=gpt", "model.dropout=x")
    assert "logger.mode is 'of', and must be one of" in text
    assert "model.dropout is 'x', and must be a number" in text
    assert "sweep" not in text


def test_hint_names_options_with_the_setting() -> None:
    optimizer = ("optimizer=adamw", "optimizer.momentum=1")
    text = problems("model=bigram", "model.dropout=0.1", *optimizer, "dataset=txt", "dataset.path=a")
    assert "it is a setting of bare, gpt, gpt2, gpt3, llama, mlp, nanogpt, rnn\n" in text
    assert "it is a setting of muon, sgd" in text
    assert "no dataset is called 'txt'" in text
    assert "dataset.path" not in text


def test_sweeper_value_of_wrong_type_is_explained() -> None:
    text = problems("hydra/sweeper=optuna", "hydra.sweeper.n_trials=abc", multirun=True)
    assert "hydra.sweeper.n_trials is 'abc', and must be a whole number" in text


WRONG_VALUES = {
    "trainer.clip_norm=none": "is 'none', and must be a number or null\n  where: trainer.clip_norm=none\n",
    "trainer.ema_decay=off": "hint:  trainer.ema_decay=null disables the average of the weights",
    "++trainer.clip_value=false": "hint:  trainer.clip_value=null disables clipping by value",
    "trainer.eval_every=no": "hint:  trainer.eval_every=1000 (trainer.max_steps) evaluates only at the end",
    "trainer.keep_last=": "trainer.keep_last is empty, and must be a whole number or null",
    "trainer.device=[a]": "trainer.device is ['a'], and must be a string",
    "trainer.batch_size=1e3": "hint:  trainer.batch_size=1000\n",
    "seed=1.5": "seed is 1.5, and must be a whole number",
    "trainer.save_in_background=maybe": "is 'maybe', and must be true or false",
    "trainer.sampling=epoch": "hint:  trainer.sampling=epochs\n",
    "logger.tags=a": "logger.tags is 'a', and must be a list of strings, as in [a,b]",
    "optimizer.lr_multipliers=3": "is 3, and must be settings, as key: value",
    "optimizer.lr_multipliers={bias:x}": "optimizer.lr_multipliers.bias is 'x', and must be a number",
    "optimizer.lr_multipliers={head:1,hid:2}": "there is no setting 'optimizer.lr_multipliers.hid'",
}


def test_value_of_wrong_type_is_explained() -> None:
    text = problems(*WRONG_VALUES)
    for message in WRONG_VALUES.values():
        assert message in text + "\n"
    assert "it resolves to 'auto', which does not fit" in problems("trainer.clip_norm=${trainer.device}")


def test_texts_from_the_environment_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_SECRET", "s3cr3t")
    monkeypatch.setenv("MY_STEPS", "3")
    monkeypatch.delenv("UNSET", raising=False)
    (tmp_path / "logger").mkdir()
    (tmp_path / "logger" / "mine.yaml").write_text("defaults: [wandb]\nentity: ${oc.env:MY_SECRET}\n")
    command = compose_command(
        [
            "logger=mine",
            "logger.project=${oc.env:MY_SECRET}",
            "logger.tags=[a,'${oc.env:MY_SECRET}','x-${oc.env:MY_SECRET}']",
            "logger.group=${oc.env:UNSET,none}",
            "trainer.max_steps=${oc.env:MY_STEPS}",
            "dataset=text",
            "dataset.path=${oc.env:MY_SECRET}/text.txt",
        ],
        str(tmp_path),
    )
    assert command.config.trainer.max_steps == 3
    assert command.from_environment == {"MY_SECRET": ["logger.project", "logger.entity", "logger.tags"]}
