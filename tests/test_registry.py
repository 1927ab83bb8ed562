import pytest

from nanolm.errors import SettingsError
from nanolm.registry import Registry


def test_name_can_be_registered_once() -> None:
    registry = Registry("sauce", "a function")

    @registry.register("red")
    def red() -> None: ...

    registry.register("red")(red)  # a module that is imported again registers the same builder

    def other() -> None: ...

    with pytest.raises(SettingsError, match="the sauce 'red' is registered twice"):
        registry.register("red")(other)


def test_unknown_name_has_the_nearest_as_hint() -> None:
    registry = Registry("sauce", "a function")
    registry.register("tomato")(print)
    with pytest.raises(SettingsError, match=r"no sauce is called 'tomatoe'[\s\S]*did you mean tomato\?"):
        registry["tomatoe"]
