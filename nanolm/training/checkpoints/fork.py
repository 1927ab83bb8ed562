"""Forks: new runs that start from a checkpoint of another run, with other settings."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch
from torch import nn

from nanolm import shell
from nanolm.config.budget import MAX_STEPS, Budget, budget_of
from nanolm.config.model import TransformerConfig
from nanolm.config.run import Config
from nanolm.config.scheduler import PlateauConfig
from nanolm.errors import CheckpointError, SettingsError
from nanolm.model.build import build
from nanolm.model.lora import adapters, merged_state_dict
from nanolm.model.shapes import has_adapters
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import ParentReference
from nanolm.training.checkpoints.base import Base
from nanolm.training.checkpoints.checkpoint import Checkpoint
from nanolm.training.checkpoints.fit import require_fit
from nanolm.training.checkpoints.manifest import WEIGHTS
from nanolm.training.optimizers.state import COUNTERS

# The losses of the parent may be of another validation text, so a fork starts with none and has its own best.
FRESH_SCALARS = {
    **dict.fromkeys(("best_val_loss", "val_loss", "ema_val_loss", "best_ema_val_loss", "loss_to_beat"), math.inf),
    "best_step": 0,
    **dict.fromkeys(("stalled", "val_sample", "best_sample"), 0),
    "loss_sum": 0.0,
    "loss_steps": 0,
}


@dataclasses.dataclass(frozen=True)
class Parent:
    """The run that a fork starts from, the settings that it was trained with, and its verified checkpoint."""

    run: RunDirectory
    config: Config
    checkpoint: Checkpoint

    def require_fit(self, config: Config, vocab_size: int) -> None:
        """Refuse settings of the fork that need other weights than the parent's, before the model is built.

        Raises:
            SettingsError: the model has another size.
        """
        with _explains_misfit(self.checkpoint):
            require_fit(self.checkpoint, _with_adapters_of(self.config, config), vocab_size)

    def require_steps_left(self, config: Config) -> None:
        """Refuse a fork without a step to train; one whose number of steps is not known yet is accepted.

        Raises:
            SettingsError: with a larger budget.
        """
        budget, n_steps, step = budget_of(config.trainer), config.trainer.max_steps, self.checkpoint.step
        if n_steps is None or step < n_steps:
            return
        if budget.in_steps:
            length, larger = f"trainer.max_steps is {n_steps}", Budget(MAX_STEPS, step + n_steps)
        else:
            length, larger = f"{budget} has {n_steps} steps", budget.times(-(-(step + n_steps) // n_steps))
        checkpoints = shell.join("nanolm", "checkpoints", shell.path_argument(self.run.path))
        raise SettingsError(
            f"the fork would start at step {step}, and {length}",
            where=f"trainer.{budget.name}",
            hint=f"{larger}, or an earlier checkpoint of `{checkpoints}`",
        )

    def keeps_adapters(self, config: Config) -> bool:
        """Return whether the fork continues the adapters of the parent; else they are merged into its base."""
        parent, fork = self.config.model, config.model
        if not (isinstance(parent, TransformerConfig) and isinstance(fork, TransformerConfig)):
            return False
        continued = dataclasses.replace(parent.lora, dropout=fork.lora.dropout)
        return parent.has_adapters and continued == fork.lora

    def load_weights(self, model: nn.Module, config: Config, vocab_size: int) -> None:
        """Load the parent's weights into the model of the fork, whose new adapters are left as they are.

        Raises:
            SettingsError: the model has other parameters.
        """
        with _explains_misfit(self.checkpoint):
            if self.checkpoint.base is not None and not self.keeps_adapters(config):
                model.load_state_dict(self._merged_weights(vocab_size), strict=False)
            elif self.checkpoint.base is None and adapters(model):
                self.checkpoint.load_base(model)
            else:
                self.checkpoint.load_weights(model)

    def base_of(self, config: Config, vocab_size: int) -> Base | None:
        """Return the frozen base of the fork; None if it trains all weights."""
        if not has_adapters(config):
            return None
        if self.checkpoint.base is None:
            weights = self.checkpoint.path / WEIGHTS
            return Base(self.checkpoint.manifest["files"][WEIGHTS]["sha256"], weights)
        if self.keeps_adapters(config):
            return Base(self.checkpoint.base, self.run.base)
        return Base.of_content(safetensors.torch.save(self._merged_weights(vocab_size)))

    def _merged_weights(self, vocab_size: int) -> dict[str, torch.Tensor]:
        model = build(self.config, vocab_size)
        self.checkpoint.load_weights(model)
        return merged_state_dict(model)

    def reference(self) -> ParentReference:
        """Return the entry of the fork's summary that identifies the checkpoint."""
        manifest = self.checkpoint.manifest
        return {
            "run": str(self.run.path),
            "step": self.checkpoint.step,
            "identity": manifest.get("identity"),
            "weights": manifest["files"][WEIGHTS]["sha256"],
        }


def _with_adapters_of(parent: Config, config: Config) -> Config:
    """Return the settings with the adapters of the parent, which the number of its weights depends on."""
    if not (isinstance(parent.model, TransformerConfig) and isinstance(config.model, TransformerConfig)):
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, lora=parent.model.lora))


@contextlib.contextmanager
def _explains_misfit(parent: Checkpoint) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise SettingsError(
            f"the parent's weights do not fit the model of these settings: {error.found}",
            where=str(parent.path),
            hint="a fork keeps the model, its size and the vocabulary of its parent; anything else may change",
        ) from error


def adapt_state(
    state: dict[str, Any],
    parent: Config,
    config: Config,
    optimizer: torch.optim.Optimizer,
    has_same_parameters: bool = True,
) -> dict[str, Any]:
    """Adapt the state of a parent (`TrainState.state_dict`) to the settings of its fork.

    Kept are the counters of training (steps, tokens, seconds), the optimizer state unless the optimizer or the trained
    parameters are others, and the random generators unless the seed is another. Losses start anew, and so does a
    plateau scheduler.

    Args:
        optimizer: the fork's, without state.
        has_same_parameters: whether the fork trains the same parameters.
    """
    scalars = state["scalars"] | FRESH_SCALARS
    if parent.scheduler != config.scheduler or isinstance(config.scheduler, PlateauConfig):
        scalars["plateau"] = {}
    saved = state["optimizer"] if has_same_parameters else None
    fork = {**state, "scalars": scalars, "optimizer": _adapt_optimizer_state(saved, parent, config, optimizer)}
    if parent.seed != config.seed:
        fork.pop("rng", None)
    return fork


def _adapt_optimizer_state(
    saved: dict[str, Any] | None, parent: Config, config: Config, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    own = optimizer.state_dict()
    if (
        saved is None
        or parent.optimizer.name != config.optimizer.name
        or len(own["param_groups"]) != len(saved["param_groups"])
    ):
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
