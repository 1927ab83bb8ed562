import pytest

from nanolm.config.checks import check
from nanolm.config.logger import WandbConfig, WandbMode
from nanolm.config.wandb_environment import check_wandb, destination
from tests.helpers import make_config

ENVIRONMENT = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_RUN_GROUP": "rates",
    "WANDB_TAGS": "small, quick",
    "WANDB_MODE": "offline",
}


def test_environment_fills_in_missing_settings() -> None:
    found = destination(WandbConfig(), ENVIRONMENT)
    assert (found.project, found.entity, found.group, found.tags) == ("theirs", "team", "rates", ("small", "quick"))
    assert (found.mode, found.from_environment) == ("offline", tuple(ENVIRONMENT))
    usual = destination(WandbConfig(), {})
    assert (usual.project, usual.entity, usual.mode, usual.from_environment) == ("nanolm", None, "auto", ())


def test_setting_takes_precedence_over_its_variable() -> None:
    config = WandbConfig(project="mine", entity="me", group="few", tags=["big"], mode=WandbMode.online)
    found = destination(config, ENVIRONMENT | {"WANDB_DISABLED": "true"})
    assert (found.project, found.entity, found.group, found.tags) == ("mine", "me", "few", ("big",))
    assert (found.mode, found.from_environment) == ("online", ())


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "false"}, "auto"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_environment_sets_the_mode(environment: dict[str, str], mode: str) -> None:
    assert destination(WandbConfig(), environment).mode == mode


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("WANDB_PROJECT", "a/b", "the wandb project 'a/b' must not contain '/'"),
        ("WANDB_PROJECT", "x" * 129, "has 129 characters, more than 128"),
        ("WANDB_ENTITY", "my team", "the wandb entity 'my team' must not contain ' '"),
        ("WANDB_RUN_GROUP", "x" * 129, "the wandb group"),
        ("WANDB_TAGS", "a,,b", "the wandb tag is empty"),
        ("WANDB_TAGS", "", "the wandb tag is empty"),
        ("WANDB_TAGS", "x" * 65, "has 65 characters, more than 64"),
        ("WANDB_RUN_ID", "a:b", "the wandb run id 'a:b' must not contain ':'"),
        ("WANDB_MODE", "foo", "there is no wandb mode 'foo'"),
        ("WANDB_MODE", "", "there is no wandb mode ''"),
    ],
)
def test_variable_that_wandb_refuses_is_reported(variable: str, value: str, expected: str) -> None:
    (problem,) = check_wandb(WandbConfig(), {variable: value})
    assert expected in str(problem)
    assert f"where: {variable}" in str(problem)
    # wandb reads its variables even where a setting takes precedence.
    config = WandbConfig(project="mine", entity="me", group="few", tags=["big"], mode=WandbMode.offline)
    assert check_wandb(config, {variable: value})


def test_invalid_flag_is_named_as_typed() -> None:
    (problem,) = check_wandb(WandbConfig(project="a/b"), {}, prefix="--")
    assert str(problem).endswith("where: --project\n  hint:  give --project another value")


def test_all_invalid_wandb_settings_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "foo")
    words = ("logger=wandb", "logger.project=a/b", "logger.tags=[ok,'']", "logger.entity='my team'")
    text = "\n".join(map(str, check(make_config(*words))))
    for part in ("'a/b'", "tag is empty", "'my team'", "no wandb mode 'foo'"):
        assert part in text
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert not check(make_config(*words))
    assert not check(make_config("logger=none"))
