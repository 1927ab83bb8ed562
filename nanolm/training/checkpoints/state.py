"""Everything that a run needs to go on as if it had never stopped, as one tree of tensors and plain numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from nanolm.errors import CheckpointError
from nanolm.training import rng
from nanolm.training.distributed import parallel as distributed
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks
from nanolm.training.ema import Averages
from nanolm.training.precision import NumberFormat


@dataclasses.dataclass
class TrainState:
    """A run in motion.

    Attributes:
        optimizer: None of a model that is counted and not trained.
        step: updates done, which is also the index of the next one.
        tokens: tokens trained on.
        seconds: wall time, evaluations and earlier sessions included.
        best_val_loss: the lowest exact validation loss so far, and `best_step` its step.
        plateau: what scheduler=plateau remembers of the evaluations.
        loss_sum: losses since the last row of metrics.jsonl, `loss_steps` of them.
        skipped_updates: under fp16, updates that were skipped because a gradient overflowed.
        entries: of a counted model's table.
        averages: of the weights (`ema`), where trainer.ema_decay asks for them.
        ema_val_loss: the exact validation loss of the averaged weights, and the lowest so far.
        timed_tokens, timed_seconds: of the steps whose speed counts (`Pace`), earlier sessions included.
        frame: of a sharded model, a model without numbers for its whole weights (`distributed.meta_copy`).
        lengths: bytes of each file that grows with the run (metrics.jsonl, samples.txt) at the last save.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    number_format: NumberFormat
    device: torch.device
    ranks: Ranks = SINGLE_PROCESS
    frame: nn.Module | None = None
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
    plateau: dict[str, float] = dataclasses.field(default_factory=dict)
    loss_sum: float = 0.0
    loss_steps: int = 0
    skipped_updates: int = 0
    entries: int = 0
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)

    def numbers(self) -> dict[str, Any]:
        """The fields that are plain numbers."""
        parts = {"model", "optimizer", "number_format", "device", "ranks", "frame", "averages"}
        names = (field.name for field in dataclasses.fields(self))
        return {name: getattr(self, name) for name in names if name not in parts}

    def full_model(self) -> nn.Module:
        """The model with all its weights. All ranks must ask."""
        return self.model if self.frame is None else distributed.full_model(self.model, self.frame)

    def state_dict(self) -> dict[str, Any]:
        """All but the weights, which have a file of their own. All ranks must ask, and get the same."""
        scaler = self.number_format.scaler
        own, *others = self.ranks.gather(rng.get_state(self.device))
        return {
            "numbers": self.numbers(),
            "optimizer": None if self.optimizer is None else distributed.whole(self.optimizer.state_dict()),
            "scaler": None if scaler is None else scaler.state_dict(),
            "rng": own,
            **({"rng_of_other_ranks": others} if others else {}),
        }

    def full_averages(self) -> Averages | None:
        """The averages, whole. All ranks must ask."""
        return None if self.averages is None else distributed.whole(self.averages)

    def load_averages(self, saved: Averages) -> None:
        """Takes over what `full_averages` gave."""
        weights = dict(self.model.named_parameters())
        self.averages = {
            name: distributed.shard_like(weights[name], average.to(self.device)) for name, average in saved.items()
        }

    def load_state_dict(self, tree: dict[str, Any], seed: int) -> None:
        """Takes over what `state_dict` gave, the generators last; those of a rank that was not there begin anew.

        Raises:
            CheckpointError: the optimizer goes over other groups of parameters than the one that was saved.
        """
        for name, value in tree["numbers"].items():
            setattr(self, name, value)
        try:
            if self.optimizer is not None:
                self.optimizer.load_state_dict(distributed.shard_optimizer_state(self.optimizer, tree["optimizer"]))
        except ValueError as error:
            raise CheckpointError(
                f"the optimizer's state does not fit: {error}",
                where="the checkpoint that the run goes on from",
                hint="the code has changed since; use the version that the run's summary.json names",
            ) from error
        if self.number_format.scaler is not None and tree["scaler"] is not None:
            self.number_format.scaler.load_state_dict(tree["scaler"])
        generators = [tree["rng"], *tree.get("rng_of_other_ranks", [])] if "rng" in tree else []
        if self.ranks.rank < len(generators):
            rng.set_state(generators[self.ranks.rank], self.device)
        else:
            rng.seed_rank(seed, self.step, self.ranks.rank)


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, contiguous, in memory of its own."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def flatten(tree: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Parts a tree into JSON that says its shape and copies of the tensors in it by number."""
    tensors: dict[str, torch.Tensor] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            name = f"{len(tensors):06d}"
            tensors[name] = copied(node)
            return {"tensor": name}
        if isinstance(node, dict):
            return {"dict": [[key, walk(value)] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return {type(node).__name__: [walk(item) for item in node]}
        assert node is None or isinstance(node, bool | int | float | str), f"{type(node)} in a checkpoint"
        if isinstance(node, float) and not math.isfinite(node):
            return {"float": repr(node)}  # JSON has no number for it; older checkpoints have {"value": Infinity}
        return {"value": node}

    return walk(tree), tensors


def unflatten(shape: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree that `flatten` parted."""
    ((kind, content),) = shape.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(value, tensors) for key, value in content}
    if kind in ("list", "tuple"):
        items = [unflatten(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    return float(content) if kind == "float" else content
