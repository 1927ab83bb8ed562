"""The budget of a run: the one setting that decides how many steps it has.

A config that was composed has exactly one budget. `trainer.max_steps` is null if it is another one, which
`nanolm.model.budget` turns into steps once the text and the vocabulary are known, and `nanolm.training.minutes` once
the speed is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from nanolm.config.run import Config
from nanolm.config.trainer import TrainerConfig
from nanolm.errors import NanolmError, SettingsError

MAX_STEPS, MAX_MINUTES = "max_steps", "max_minutes"
# The budgets in another unit than steps.
OTHERS = ("max_tokens", "max_epochs", "max_flops", "tokens_per_parameter", MAX_MINUTES)
BUDGETS = (MAX_STEPS, *OTHERS)

DEFAULT_STEPS = TrainerConfig().steps


@dataclasses.dataclass(frozen=True)
class Budget:
    """A setting of the trainer that is a budget, and its value."""

    name: str
    value: float

    def __str__(self) -> str:
        return f"trainer.{self.name}={format_amount(self.value)}"

    @property
    def in_steps(self) -> bool:
        """Whether it is trainer.max_steps."""
        return self.name == MAX_STEPS

    def as_dict(self) -> dict[str, float]:
        """Return the value by name, as in summary.json."""
        return {self.name: self.value}

    def times(self, factor: int) -> Budget:
        """Return a multiple of the budget."""
        return Budget(self.name, self.value * factor)


def format_amount(value: float) -> str:
    """Format the value of a budget as it is typed: 5000000, 2.5, 3e15."""
    short = f"{value:g}".replace("e+", "e")
    return str(int(value)) if value == int(value) and (value < 1e9 or float(short) != value) else short


def set_budgets(trainer: TrainerConfig) -> list[Budget]:
    """Return the budgets that are not null."""
    values = {name: getattr(trainer, name) for name in BUDGETS}
    return [Budget(name, value) for name, value in values.items() if value is not None]


def budget_of(trainer: TrainerConfig) -> Budget:
    """Return the budget of a checked run, also of one whose budget has been turned into steps."""
    return set_budgets(trainer)[-1]


def as_asked(config: Config) -> Config:
    """Return the settings without the number of steps that another budget has been turned into."""
    if budget_of(config.trainer).in_steps:
        return config
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, max_steps=None))


def drop_replaced(trainer: TrainerConfig, typed: Collection[str]) -> set[str]:
    """Set the budgets to null that another one replaces, and return their keys.

    A budget on the command line replaces those of files and of a resumed run; any budget replaces the default of
    trainer.max_steps.

    Args:
        typed: the keys on the command line.
    """
    found = set_budgets(trainer)
    chosen = [budget for budget in found if f"trainer.{budget.name}" in typed]
    if not chosen and trainer.max_steps == DEFAULT_STEPS:
        chosen = [budget for budget in found if not budget.in_steps]
    replaced = [budget.name for budget in found if budget not in chosen] if chosen else []
    for name in replaced:
        setattr(trainer, name, None)
    return {f"trainer.{name}" for name in replaced}


def check_budget(config: Config) -> Iterator[NanolmError]:
    """Refuse two budgets, and none."""
    found = set_budgets(config.trainer)
    if not found:
        yield SettingsError(
            "the run has no budget: trainer.max_steps is null, and so is every other one",
            where=f"trainer.{MAX_STEPS}",
            hint=f"set one of {', '.join(f'trainer.{name}' for name in BUDGETS)}",
        )
    if len(found) > 1:
        *others, last = found
        yield SettingsError(
            f"a run has one budget, and {', '.join(map(str, others))} and {last} are set",
            where=", ".join(f"trainer.{budget.name}" for budget in found),
            hint="leave one of them out; in a file, set the other one to null",
        )
