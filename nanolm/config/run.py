"""A whole run: every group, what makes two runs the same, and what may differ when one goes on."""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import MISSING

from nanolm.config.dataset import DatasetConfig
from nanolm.config.fields import bounded, path_field
from nanolm.config.logger import LoggerConfig
from nanolm.config.mask import MaskConfig
from nanolm.config.model import ModelConfig
from nanolm.config.optimizer import OptimizerConfig
from nanolm.config.scheduler import SchedulerConfig
from nanolm.config.size import SizeConfig
from nanolm.config.tokenizer import TokenizerConfig
from nanolm.config.trainer import TrainerConfig


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
