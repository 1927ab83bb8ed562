"""Optimizer settings that depend on other settings of the run: learning rates by width, and fractions of its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from nanolm.config.model import Initialization, TransformerConfig
from nanolm.config.optimizer import (
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    LionConfig,
    LrMultipliers,
    LrScaling,
    MuonConfig,
    OptimizerConfig,
    ScheduleFreeConfig,
)
from nanolm.config.run import Config
from nanolm.errors import NanolmError, SettingsError

# The width that optimizer.lr is given for.
BASE_WIDTH = 128

# lr is proportional to the width to the power of these, by optimizer and parameter group; all others are constant.
# An update of a matrix has a spectral norm of about its root mean square times the width if its entries are aligned, as
# those of Adam are, and times the root of the width if all its singular values are equal, as those of Muon are
# (Yang et al. 2023, A Spectral Condition for Feature Learning). Adafactor's lr is relative to the weights, whose root
# mean square falls with the root of the width.
ALIGNED = {"hidden": -1.0, "head": -1.0}
WIDTH_EXPONENTS: dict[str, dict[str, float]] = {
    AdamConfig.name: ALIGNED,
    AdamWConfig.name: ALIGNED,
    LionConfig.name: ALIGNED,
    ScheduleFreeConfig.name: ALIGNED,
    MuonConfig.name: {"hidden": -0.5, "head": -1.0},
    AdafactorConfig.name: {"hidden": -0.5, "head": -1.0},
}


def resolve_optimizer(config: Config) -> OptimizerConfig:
    """Return the optimizer settings of a run with lr_scaling in lr_multipliers, and fractions of the run in steps."""
    optimizer = config.optimizer
    changes: dict[str, Any] = {}
    if is_scaled(config):
        factor = config.size.d_model / BASE_WIDTH
        exponents = WIDTH_EXPONENTS[optimizer.name]
        changes["lr_multipliers"] = LrMultipliers(
            **{
                group: multiplier * factor ** exponents.get(group, 0.0)
                for group, multiplier in vars(optimizer.lr_multipliers).items()
            }
        )
    if isinstance(optimizer, MuonConfig) and optimizer.momentum_warmup_fraction is not None:
        changes["momentum_warmup_steps"] = round(optimizer.momentum_warmup_fraction * config.trainer.steps)
    return dataclasses.replace(optimizer, **changes)


def is_scaled(config: Config) -> bool:
    """Return whether lr depends on the width."""
    scaling = config.optimizer.lr_scaling
    if scaling is not LrScaling.auto:
        return scaling is LrScaling.width
    model = config.model
    has_rule = config.optimizer.name in WIDTH_EXPONENTS
    return has_rule and isinstance(model, TransformerConfig) and model.initialization is Initialization.zero_projections


def check_lr_scaling(config: Config) -> Iterator[NanolmError]:
    """Refuse lr_scaling=width without a width or a rule."""
    if config.optimizer.lr_scaling is not LrScaling.width:
        return
    hint = "use optimizer.lr_scaling=none"
    if not config.model.has_width:
        yield SettingsError(
            f"model={config.model.name} has no width, which optimizer.lr_scaling=width scales lr by",
            where="optimizer.lr_scaling",
            hint=f"{hint}; a plugin's model whose width is size.d_model declares has_width = True in its settings",
        )
    if config.optimizer.name not in WIDTH_EXPONENTS:
        yield SettingsError(
            f"optimizer={config.optimizer.name} has no rule for lr_scaling=width",
            where="optimizer.lr_scaling",
            hint=f"{hint}, or an optimizer with a rule: {', '.join(WIDTH_EXPONENTS)}",
        )
