"""A whole run: every group, what makes two runs the same, and what may differ when one goes on."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from omegaconf import MISSING

from nanolm.config.dataset import DatasetConfig
from nanolm.config.fields import bounded, leaves, path_field, plain
from nanolm.config.logger import LoggerConfig
from nanolm.config.mask import MaskConfig, pattern_names, pattern_part
from nanolm.config.model import ModelConfig, TransformerConfig
from nanolm.config.optimizer import OptimizerConfig
from nanolm.config.roles import MAY_CHANGE, is_quiet
from nanolm.config.scheduler import PlateauConfig, SchedulerConfig
from nanolm.config.size import SizeConfig
from nanolm.config.tokenizer import TokenizerConfig
from nanolm.config.trainer import TrainerConfig
from nanolm.json_text import dump_json


@dataclasses.dataclass
class Config:
    """Everything that it takes to repeat a run."""

    dataset: DatasetConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    model: ModelConfig = MISSING
    size: SizeConfig = MISSING
    mask: MaskConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    scheduler: SchedulerConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    seed: int = bounded(1337, ge=0, lt=2**63)
    # never, auto (go on where a run with these settings was cut off) or a run directory
    resume: str = path_field("never")
    # A new run that begins where the one of `resume` stands, or one of its checkpoints, whatever settings differ
    fork: bool = False
    # Modules of one's own that register models, optimizers, masks, ...
    plugins: list[str] = dataclasses.field(default_factory=list)


# Groups with one schema, whatever the option.
SINGLE_SCHEMAS: dict[str, type[Any]] = {"size": SizeConfig, "trainer": TrainerConfig}

# The schema of an option that a plugin registers without one.
BASE_SCHEMAS: dict[str, type[Any]] = {
    "dataset": DatasetConfig,
    "tokenizer": TokenizerConfig,
    "model": ModelConfig,
    "mask": MaskConfig,
    "optimizer": OptimizerConfig,
    "scheduler": SchedulerConfig,
    "logger": LoggerConfig,
}


def may_change(key: str, config: Config) -> bool:
    """Whether a run with these settings may go on with another value for this one."""
    if key == "trainer.eval_every" and isinstance(config.scheduler, PlateauConfig):
        return False
    return key in MAY_CHANGE or is_quiet(key)


def flat(config: Config) -> dict[str, Any]:
    """The settings as {dotted key: plain value}, enums by their name."""
    return {key: plain(value) for key, _, value in leaves(config)}


def recorded(config: Config) -> dict[str, Any]:
    """The settings that a checkpoint's manifest repeats, as `flat`: all that may change a number."""
    return {key: value for key, value in flat(config).items() if not is_quiet(key)}


def differing(first: Config, second: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that are not the same, in order, with both values; None where one does not have it.

    How a run begins (resume, fork) is none of them.
    """
    before, after = flat(first), flat(second)
    keys = sorted({*before, *after} - {"resume", "fork"})
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def changes_in_words(found: dict[str, tuple[Any, Any]]) -> list[str]:
    """What `differing` found, as 'key: old -> new'."""
    return [f"{key}: {before} -> {after}" for key, (before, after) in found.items()]


def identity(config: Config) -> str:
    """A hash of all that decides a run's numbers: two runs with the same one are the same experiment."""
    decisive = {key: value for key, value in flat(config).items() if not may_change(key, config)}
    return hashlib.sha256(dump_json(decisive, sort_keys=True).encode()).hexdigest()


def layer_masks(config: Config) -> list[MaskConfig]:
    """The mask of each layer, its own settings and no pattern in it. The settings must be sound."""
    names = pattern_names(config.mask)
    parts = [pattern_part(config.mask, name) for name in names] if names else [config.mask]
    return [parts[layer % len(parts)] for layer in range(config.size.n_layers)]


def reads_documents(config: Config) -> bool:
    """Whether the model must be told which document each token is of. The settings must be sound."""
    return isinstance(config.model, TransformerConfig) and any(mask.within_documents for mask in layer_masks(config))


def layers_by_mask(config: Config) -> list[tuple[MaskConfig, list[int]]]:
    """The masks that differ, in the order in which layers first have them, each with its layers, counted from 0."""
    found: list[tuple[MaskConfig, list[int]]] = []
    for layer, mask in enumerate(layer_masks(config)):
        known = next((layers for other, layers in found if other == mask), None)
        if known is None:
            found.append((mask, [layer]))
        else:
            known.append(layer)
    return found
