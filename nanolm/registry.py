"""Registries of models, optimizers, masks and other options by name. Configs hold the names.

A plugin registers its own, and is named on the command line with `plugins=[my_module]`:

    from dataclasses import dataclass
    from nanolm.config.optimizer import OptimizerConfig
    from nanolm.registry import OPTIMIZERS

    @dataclass
    class SignConfig(OptimizerConfig):
        name: str = "sign"
        momentum: float = 0.9

    @OPTIMIZERS.register("sign", schema=SignConfig)
    def sign(model, config): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from nanolm.errors import SettingsError, nearest

Built = TypeVar("Built")


class Registry:
    """The options of one group: the schema and the builder of each name.

    Args:
        group: directory in configs/, and name on the command line.
        what: description of a builder, for errors.
    """

    def __init__(self, group: str, what: str) -> None:
        self.group = group
        self.what = what
        # The settings of every option of the group, and of options that are registered without a schema.
        self.base: type[Any]
        self.schemas: dict[str, type[Any]] = {}
        self._builders: dict[str, Any] = {}

    def register(self, name: str, schema: type[Any] | None = None) -> Callable[[Built], Built]:
        """Register the decorated builder.

        Args:
            name: of the option.
            schema: dataclass of its settings; None if they are those of every option in the group.

        Raises:
            SettingsError: another builder has this name.
        """

        def decorate(builder: Built) -> Built:
            known = self._builders.get(name)
            if known is not None and origin(known) != origin(builder):
                raise SettingsError(
                    f"the {self.group} {name!r} is registered twice: by {origin(known)} and by {origin(builder)}",
                    hint="give one of them another name",
                )
            self._builders[name] = builder
            if schema is not None:
                self.schemas[name] = schema
            return builder

        return decorate

    def __getitem__(self, name: str) -> Any:
        try:
            return self._builders[name]
        except KeyError:
            raise SettingsError(
                f"no {self.group} is called {name!r}",
                where=f"{self.group}.name",
                hint=nearest(name, self._builders) + f"; a plugin, named by plugins=[...], can register {self.what}",
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._builders

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def schema(self, name: str) -> type[Any]:
        """Return the dataclass of an option's settings."""
        return self.schemas.get(name, self.base)

    @property
    def names(self) -> set[str]:
        """Every name that has a schema or a builder; builders are registered when their module is imported."""
        return {*self.schemas, *self._builders}


def origin(builder: Any) -> str:
    """Return the module and the name of a function or class, or those of the class of another object."""
    named = builder if hasattr(builder, "__qualname__") else type(builder)
    return f"{getattr(named, '__module__', 'builtins')}.{named.__qualname__}"


DATASETS = Registry("dataset", "a function of its settings that returns the text")
TOKENIZERS = Registry("tokenizer", "a class with fit, encode, decode, to_json and from_json")
MODELS = Registry("model", "a function of (config, vocab_size) that returns a torch module from tokens to logits")
MASKS = Registry("mask", "a function of (query position, key position, config) that returns whether it is visible")
OPTIMIZERS = Registry("optimizer", "a function of (model, config) that returns a torch optimizer")
SCHEDULERS = Registry("scheduler", "a function of (step, max_steps, config) that returns the factor on lr")
LOGGERS = Registry(
    "logger", "a function of (config, run, about, warn) that returns an object with log, close and about"
)

GROUPS = {
    registry.group: registry for registry in (DATASETS, TOKENIZERS, MODELS, MASKS, OPTIMIZERS, SCHEDULERS, LOGGERS)
}
