"""The state of a training run: everything that an exact resume needs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from nanolm.checksummed import MANIFEST
from nanolm.errors import CheckpointError
from nanolm.training import rng
from nanolm.training.checkpoints.checkpoint import Checkpoint
from nanolm.training.checkpoints.manifest import STRUCTURE
from nanolm.training.checkpoints.values import (
    COUNT,
    FINITE,
    LIST,
    NUMBER,
    TABLE,
    TABLE_OR_NULL,
    require,
    require_table,
)
from nanolm.training.distributed import parallel
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks
from nanolm.training.ema import Averages
from nanolm.training.optimizers.state import checked_state
from nanolm.training.precision import NumberFormat
from nanolm.training.schedules import INITIAL_MEMORY

# Fields of TrainState that are not saved as scalars.
OBJECTS = ("model", "optimizer", "number_format", "device", "ranks", "averages")
# What is kept of the state of torch.amp.GradScaler; all else in it is a setting.
SCALER_KINDS = {"scale": FINITE, "_growth_tracker": COUNT}


@dataclasses.dataclass
class TrainState:
    """The model, its optimizer and the counters of a run.

    Attributes:
        optimizer: None for a model that is fitted in one pass.
        averages: moving averages of the weights (`ema`); None without trainer.ema_decay.
        step: optimizer steps done, which is also the index of the next one.
        tokens: tokens trained on.
        seconds: wall time, including evaluations and earlier sessions.
        best_val_loss: lowest validation loss so far, reached at best_step.
        val_loss: validation loss of the latest evaluation.
        val_sample: tokens that val_loss was estimated over (trainer.val_tokens), and best_sample for best_val_loss; 0
            for an exact loss.
        ema_val_loss: the same of the averaged weights, whose lowest is best_ema_val_loss.
        timed_tokens: tokens of the steps that count towards the speed (`Pace`), which took timed_seconds.
        loss_to_beat: validation loss of the last improvement for trainer.early_stop, `stalled` evaluations ago.
        plateau: memory of scheduler=plateau.
        loss_sum: sum of the losses of the loss_steps steps since the last row of metrics.jsonl.
        skipped_updates: under fp16, updates that were skipped because a gradient overflowed.
        entries: table entries of a fitted model.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    number_format: NumberFormat
    device: torch.device
    ranks: Ranks = SINGLE_PROCESS
    averages: Averages | None = None
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_val_loss: float = math.inf
    best_step: int = 0
    val_loss: float = math.inf
    ema_val_loss: float = math.inf
    best_ema_val_loss: float = math.inf
    timed_tokens: int = 0
    timed_seconds: float = 0.0
    loss_to_beat: float = math.inf
    stalled: int = 0
    val_sample: int = 0
    best_sample: int = 0
    plateau: dict[str, float] = dataclasses.field(default_factory=dict)
    loss_sum: float = 0.0
    loss_steps: int = 0
    skipped_updates: int = 0
    entries: int = 0

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of the model only."""
        return any(map(parallel.is_sharded, self.model.parameters()))

    def full_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], Averages | None]:
        """Return the full weights, the `state_dict` and the full averages on rank 0. All ranks must call it."""
        weights = parallel.full_weights(self.model, self.ranks)
        return weights, self.state_dict(), parallel.gather_full(self.averages, self.ranks)

    def load_averages(self, full: Averages) -> None:
        """Restore the averages that `full_state` returned."""
        weights = dict(self.model.named_parameters())
        self.averages = {
            name: parallel.shard_like(weights[name], average.to(self.device)) for name, average in full.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the weights and averages; complete on rank 0. All ranks must call it."""
        scaler = self.number_format.scaler
        own, *others = self.ranks.gather(rng.get_state(self.device))
        optimizer = None if self.optimizer is None else self.optimizer.state_dict()
        return {
            "scalars": {name: getattr(self, name) for name in SCALAR_KINDS},
            "optimizer": parallel.gather_full(optimizer, self.ranks),
            "scaler": None if scaler is None else scaler.state_dict(),
            "rng": own,
            **({"rng_of_other_ranks": others} if others else {}),
        }

    def load_state_dict(
        self, state: dict[str, Any], seed: int, where: str = "the checkpoint that the run resumes from"
    ) -> None:
        """Restore what `state_dict` returned, random generators last.

        Args:
            state: as `read_state` returned it; "rng" may be missing.
            seed: seeds the generators of a rank whose state was not saved.
            where: the file of the state, for errors.

        Raises:
            CheckpointError: the state is not one of this model and optimizer.
        """
        what = "the optimizer state"
        try:
            for name, value in state["scalars"].items():
                setattr(self, name, value)
            if self.optimizer is not None:
                saved = checked_state(self.optimizer, state["optimizer"])
                self.optimizer.load_state_dict(parallel.shard_optimizer_state(self.optimizer, saved))
            what = "the loss scale"
            if self.number_format.scaler is not None and state["scaler"] is not None:
                own = self.number_format.scaler.state_dict()
                require_table(
                    state["scaler"],
                    dict.fromkeys(own, FINITE) | SCALER_KINDS,
                    "scaler",
                    own.keys() - SCALER_KINDS.keys(),
                )
                kept = {name: state["scaler"][name] for name in SCALER_KINDS}
                self.number_format.scaler.load_state_dict({**own, **kept})
            what = "the state of the random generators"
            # Last, so that nothing draws random numbers after the generators are restored.
            generators = [state["rng"], *state.get("rng_of_other_ranks", [])] if "rng" in state else []
            if self.ranks.rank < len(generators):
                rng.set_state(generators[self.ranks.rank], self.device)
            else:
                rng.seed_rank(seed, self.step, self.ranks.rank)
        except ValueError as error:
            raise CheckpointError(
                f"{what} does not match: {error}",
                where=where,
                hint="use another checkpoint; if the code has changed since, use the nanolm version that the run's "
                "summary.json names",
            ) from error


# The kind of each scalar, by the type of its field; losses are infinite before the first evaluation.
SCALAR_KINDS = {
    field.name: {"int": COUNT, "float": NUMBER}.get(str(field.type), TABLE)
    for field in dataclasses.fields(TrainState)
    if field.name not in OBJECTS
} | dict.fromkeys(("seconds", "timed_seconds", "loss_sum"), FINITE)


def read_state(source: Checkpoint) -> dict[str, Any]:
    """Read the state of a checkpoint and check its counters.

    Raises:
        CheckpointError: a name in it is unknown, or a value has another type or is out of range.
    """
    with source.explains_errors_of(STRUCTURE):
        state = source.load_state()
        kinds = {"scalars": TABLE, "optimizer": TABLE_OR_NULL, "scaler": TABLE_OR_NULL, "rng": TABLE}
        # The checkpoint of an imported model has no state of random generators.
        require_table(state, kinds | {"rng_of_other_ranks": LIST}, optional=("rng", "rng_of_other_ranks"))
        if state["optimizer"] is not None:
            require_table(state["optimizer"], {"state": TABLE, "param_groups": LIST}, "optimizer")
            for number, group in enumerate(state["optimizer"]["param_groups"]):
                require(group, TABLE, f"param_groups[{number}]")
        scalars = state["scalars"]
        # A run of an older version has fewer of them.
        require_table(scalars, SCALAR_KINDS, "scalars", SCALAR_KINDS.keys() - {"step"})
        require_table(scalars.get("plateau", {}), dict.fromkeys(INITIAL_MEMORY, NUMBER), "plateau", INITIAL_MEMORY)
        for name, expected in (("step", source.step), ("best_step", source.best_step)):
            if scalars.get(name, expected) != expected:
                raise ValueError(f"scalars.{name} is {scalars[name]:,}, and {expected:,} in {MANIFEST}")
    return state
