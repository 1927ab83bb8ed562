"""Short names and what they stand for. Configs carry the name; these tables hold the rest.

A module of one's own adds to them, and is named on the command line as `plugins=[my_module]`:

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
    """One group of configs: the schema and the builder behind each short name.

    Args:
        group: the folder in configs/, and the word on the command line.
        what: what a builder is, for people.
    """

    def __init__(self, group: str, what: str) -> None:
        self.group = group
        self.what = what
        self.schemas: dict[str, type[Any]] = {}
        self._builders: dict[str, Any] = {}

    def register(self, name: str, schema: type[Any] | None = None) -> Callable[[Built], Built]:
        """Decorates what `name` stands for. `schema` is the dataclass of its settings, where it has its own.

        Raises:
            SettingsError: the name is taken.
        """

        def decorate(builder: Built) -> Built:
            known = self._builders.get(name)
            if known is not None and _origin(known) != _origin(builder):
                raise SettingsError(
                    f"the {self.group} {name!r} is registered twice: by {_origin(known)} and by {_origin(builder)}",
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
                hint=nearest(name, self._builders)
                + f"; one of your own is {self.what}, registered in a module named by plugins=[...]",
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._builders

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)


def _origin(builder: Any) -> str:
    return f"{builder.__module__}.{builder.__qualname__}"


DATASETS = Registry("dataset", "a function of its settings that returns the text")
TOKENIZERS = Registry("tokenizer", "a class with fit, encode, decode, to_json and from_json")
MODELS = Registry("model", "a function of (config, vocab_size) that returns a torch module from tokens to logits")
MASKS = Registry("mask", "a function of (query position, key position, config) that returns who may see whom")
OPTIMIZERS = Registry("optimizer", "a function of (model, config) that returns a torch optimizer")
SCHEDULERS = Registry("scheduler", "a function of (step, max_steps, config) that returns the factor on lr")
LOGGERS = Registry(
    "logger", "a function of (config, run, about, warn) that returns an object with log, close and about"
)

GROUPS = {
    registry.group: registry for registry in (DATASETS, TOKENIZERS, MODELS, MASKS, OPTIMIZERS, SCHEDULERS, LOGGERS)
}
