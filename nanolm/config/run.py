"""All settings of a run, by group."""

from __future__ import annotations

import dataclasses
from typing import Any

from nanolm.config.dataset import DatasetConfig
from nanolm.config.fields import Role, Trait, setting
from nanolm.config.logger import LoggerConfig
from nanolm.config.mask import MaskConfig
from nanolm.config.model import ModelConfig
from nanolm.config.optimizer import OptimizerConfig
from nanolm.config.scheduler import SchedulerConfig
from nanolm.config.size import SizeConfig
from nanolm.config.tokenizer import TokenizerConfig
from nanolm.config.trainer import TrainerConfig
from nanolm.registry import GROUPS


@dataclasses.dataclass
class Config:
    """Everything that is needed to repeat a run.

    The role and the traits of a group apply to all of its settings.
    """

    dataset: DatasetConfig = setting(doc="Text and its splits.", traits=(Trait.loss_unit, Trait.evaluation))
    tokenizer: TokenizerConfig = setting(doc="Tokenizer.", traits=(Trait.loss_unit, Trait.evaluation))
    model: ModelConfig = setting(doc="Model architecture.", traits=(Trait.evaluation,))
    size: SizeConfig = setting(doc="Size of the model.", traits=(Trait.scale, Trait.evaluation))
    mask: MaskConfig = setting(doc="Attention mask.", traits=(Trait.evaluation,))
    optimizer: OptimizerConfig = setting(doc="Optimizer.")
    scheduler: SchedulerConfig = setting(doc="Learning rate schedule.")
    trainer: TrainerConfig = setting(doc="Training loop.")
    logger: LoggerConfig = setting(doc="Experiment logger, in addition to metrics.jsonl.", role=Role.reporting)
    seed: int = setting(
        1337,
        doc="Seed of initialization, batches, dropout and samples.",
        traits=(Trait.scale,),
        ge=0,
        lt=2**63,
    )
    plugins: list[str] = setting(
        default_factory=list,
        doc="Modules to import, which register models, optimizers, masks, ...",
        role=Role.runtime,
    )


# Schemas of groups in which all options have the same one.
SINGLE_SCHEMAS: dict[str, type[Any]] = {"size": SizeConfig, "trainer": TrainerConfig}

# The groups, whose options are chosen as group=option.
SETTING_GROUPS = (*GROUPS, *SINGLE_SCHEMAS)
