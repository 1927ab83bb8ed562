import pytest

from nanolm.errors import SettingsError
from nanolm.registry import Registry


def test_a_name_is_given_once() -> None:
    registry = Registry("sauce", "a function")

    @registry.register("red")
    def red() -> None: ...

    registry.register("red")(red)  # a module that is imported again registers the same thing

    def other() -> None: ...

    with pytest.raises(SettingsError, match="the sauce 'red' is registered twice"):
        registry.register("red")(other)


def test_an_unknown_name_comes_with_the_nearest() -> None:
    registry = Registry("sauce", "a function")
    registry.register("tomato")(print)
    with pytest.raises(SettingsError, match=r"no sauce is called 'tomatoe'[\s\S]*did you mean tomato\?"):
        registry["tomatoe"]
