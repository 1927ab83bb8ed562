"""Every option of every command with invalid values; the options are discovered from the parsers."""

import argparse
import itertools

import hypothesis
import pytest
from hypothesis import strategies as st

from nanolm.cli import main as cli
from nanolm.errors import Problems, SettingsError

NASTY = (
    "", " ", "-", "--", "-1", "0", "1e-45", "1e400", "-inf", "inf", "nan", "NaN", "1e300", "9" * 25, "9" * 5000, "²",
    "٣", "1_0", " 1 ", "foo", "cuda:x", "cuda:-1", "cuda:²", "cuda:99999999999", "CPU", "best ", "../..", ".", "/", "~",
    ",", "a=b", "=", "${x}", "\udcff", "\u200b", "\x1b[31m", "x" * 300, "[1,2]", "true", "null", "1,5", "0x10", "中",
)  # fmt: skip
VALUES = st.sampled_from(NASTY) | st.text(st.characters(exclude_characters="\0"), max_size=20) | st.floats().map(str)


# Hydra parses the arguments of train.
MADE = {name: cli.make_parser(name) for name in cli.COMMANDS if name != "train"}
# The options and arguments that take a value.
WITH_VALUE = {command: [action for action in parser._actions if action.nargs != 0] for command, parser in MADE.items()}
OPTIONS = [(command, action) for command, actions in WITH_VALUE.items() for action in actions]


def arguments_with(command: str, action: argparse.Action, value: str) -> list[str]:
    """Return the arguments that set an option, with all required arguments."""
    required = [
        argument
        for other in WITH_VALUE[command]
        if other is not action and other.required
        for argument in [*other.option_strings[:1], "1"]
    ]
    return [*required, f"{action.option_strings[-1]}={value}"] if action.option_strings else [*required, "--", value]


def parsed(command: str, action: argparse.Action, value: str) -> tuple[object, SettingsError | None]:
    """Return the parsed value of an option, or the error that refuses it."""
    try:
        return vars(MADE[command].parse(arguments_with(command, action, value)))[action.dest], None
    except SettingsError as error:
        return None, error


@pytest.mark.parametrize("command", MADE)
def test_every_option_has_a_check(command: str) -> None:
    for action in WITH_VALUE[command]:
        is_override = action.dest == "overrides"
        assert is_override or action.choices or action.type, f"{command} {action.dest} accepts any text"
        assert action.type not in (int, float, str), f"{command} {action.dest} has no bounds"


@hypothesis.given(st.sampled_from(OPTIONS), VALUES)
@hypothesis.settings(max_examples=200)
def test_invalid_values_raise_a_settings_error(option: tuple[str, argparse.Action], value: str) -> None:
    _, error = parsed(*option, value)
    assert error is None or (error.hint and (error.where or isinstance(error, Problems)))


def test_numbers_are_finite_and_in_bounds() -> None:
    for (command, action), value in itertools.product(OPTIONS, NASTY):
        found, _ = parsed(command, action, value)
        for each in found if isinstance(found, list) else [found]:
            assert not isinstance(each, int | float) or 0 <= each < 1e301, (command, action.dest, value)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("generate R --prompt 1 --seed 99999999999999999999", "--seed is 99999999999999999999, which is too large"),
        ("generate R --prompt 1 --seed -1", "--seed is -1, which must be at least 0"),
        ("generate R --prompt 1 --temperature nan", "--temperature is nan, which is not a finite number"),
        ("generate R --prompt 1 --top-k 1.5", "--top-k is '1.5', which is not a whole number"),
        ("generate R --prompt 1 --checkpoint ²", "--checkpoint is '²'"),
        ("generate R --prompt 1 --device CPU", "--device is 'CPU'"),
        ("evaluate R --stride 0", "--stride is 0, which must be at least 1"),
        ("evaluate R --weights best", "invalid choice: 'best'"),
        ("evaluate", "the following arguments are required: RUN"),
        ("evaluate R --jsonn x", "unrecognized arguments: --jsonn"),
        ("report R --layer 0 -1", "--layer is -1, which must be at least 0"),
        ("count --vocab-size 1e3", "--vocab-size is '1e3', which is not a whole number"),
        ("compare R --target 0", "--target is 0, which must be at least"),
        ("compare R --json --csv", "not allowed with argument"),
        ("wandb push R --timeout 1e300", "--timeout is 1e300, which is too large"),
        ("mask show --png .", "--png is '.', which is a folder"),
        ("mask show --png " + "x" * 300, "x: File name too long"),
        ("report R -o nowhere/a.html", "--output nowhere/a.html: there is no folder nowhere"),
        ("runs --status ,", "--status is ',', which contains no name"),
    ],
)
def test_mistakes_have_a_place_and_a_hint(command: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        cli.run(command.split(" "))
    assert expected in caught.value.found
    assert caught.value.where
    assert caught.value.hint
    assert caught.value.exit_status == 2


def test_all_mistakes_in_options_are_reported_at_once() -> None:
    with pytest.raises(SettingsError, match=r"(?s)--seed is -1.*--device is ''|--device is ''.*--seed is -1"):
        cli.run(["generate", "R", "--seed", "-1", "--device", "", "--prompt", "x"])
    with pytest.raises(SettingsError, match=r"(?s)--stride is 0.*required: RUN"):
        cli.run(["evaluate", "--stride", "0"])


def test_options_in_any_order() -> None:
    found = cli.make_parser("generate").parse(["--prompt", "-1 is less", "--seed=7", "R", "--plugins", "a", "b"])
    assert (found.run, found.prompt, found.seed, found.plugins) == ("R", "-1 is less", 7, ["a", "b"])
    assert cli.make_parser("runs").parse([]).folder == "outputs"
    assert cli.make_parser("count").parse(["model=gpt", "--json", "size=tiny"]).overrides == ["model=gpt", "size=tiny"]
