"""A new run that begins where another one stands, with other settings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from nanolm.config.run import Config
from nanolm.config.scheduler import PlateauConfig
from nanolm.errors import CheckpointError, SettingsError
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints.files import WEIGHTS, Checkpoint

# What optimizers count in their groups; all else there are settings.
COUNTERS = ("updates", "weight_sum")


@dataclasses.dataclass(frozen=True)
class Parent:
    """Where a fork begins.

    Attributes:
        config: the settings that the parent was trained with.
        checkpoint: of the parent, verified.
    """

    run: RunDirectory
    config: Config
    checkpoint: Checkpoint

    def load_weights(self, model: nn.Module) -> None:
        """Fills a model of the fork's settings.

        Raises:
            SettingsError: it has another shape than the parent.
        """
        try:
            self.checkpoint.load_weights(model)
        except CheckpointError as error:
            raise SettingsError(
                f"the parent's weights do not fit the model of these settings: {error.found}",
                where=str(self.checkpoint.path),
                hint="a fork keeps the model, its size and the vocabulary of its parent; anything else may change",
            ) from error

    def pointer(self) -> dict[str, Any]:
        """What the fork's summary says of it."""
        manifest = self.checkpoint.manifest
        return {
            "run": str(self.run.path),
            "step": self.checkpoint.step,
            "identity": manifest.get("identity"),
            "weights": manifest["files"][WEIGHTS]["sha256"],
        }


def adapt_state(
    tree: dict[str, Any], parent: Config, config: Config, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The state of a parent (`TrainState.state_dict`) as its fork begins with it.

    What was trained on so far is kept: steps, tokens, seconds, the optimizer's memory and the generators. The optimizer
    has the settings of the fork; its memory goes where it is another optimizer, the generators' where the seed is
    another. Losses were of the parent, and begin anew.

    Args:
        optimizer: the fork's, new.
    """
    numbers = tree["numbers"] | {
        "best_val_loss": math.inf,
        "best_step": 0,
        "val_loss": math.inf,
        "ema_val_loss": math.inf,
        "best_ema_val_loss": math.inf,
        "loss_sum": 0.0,
        "loss_steps": 0,
        "lengths": {},
    }
    if parent.scheduler != config.scheduler or isinstance(config.scheduler, PlateauConfig):
        numbers["plateau"] = {}
    fork = {**tree, "numbers": numbers, "optimizer": _with_own_settings(tree["optimizer"], parent, config, optimizer)}
    if parent.seed != config.seed:
        del fork["rng"]
    return fork


def _with_own_settings(
    saved: dict[str, Any], parent: Config, config: Config, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    own = optimizer.state_dict()
    is_alike = parent.optimizer.name == config.optimizer.name and len(own["param_groups"]) == len(saved["param_groups"])
    if not is_alike:
        return own
    groups = [
        {
            **of_parent,
            **{key: value for key, value in of_fork.items() if key not in COUNTERS},
            "initial_lr": of_fork["lr"],
        }
        for of_parent, of_fork in zip(saved["param_groups"], own["param_groups"], strict=True)
    ]
    return {**saved, "param_groups": groups}
