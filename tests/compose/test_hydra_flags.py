import pytest

from nanolm.compose.hydra_commands import parse_flags
from nanolm.errors import SettingsError


def test_flags_are_parsed_in_any_order() -> None:
    flags = parse_flags(["model=gpt", "--config-dir", "mine", "seed=1", "-m"])
    assert (flags.config_dir, flags.multirun, flags.overrides) == ("mine", True, ["model=gpt", "seed=1"])
    with pytest.raises(SettingsError, match=r"unrecognized arguments: --lr[\s\S]*settings are key=value"):
        parse_flags(["--lr", "model=gpt"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--config-name", "x", "--run", "-m"],
            r"--config-name is not supported[\s\S]*--run and -m exclude each other",
        ),
        (["--resolve"], "--resolve has no effect without --cfg"),
        (["--cfg", "job", "-m"], "--cfg prints the settings of one run, and -m starts several"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments: list[str], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        parse_flags(arguments)
