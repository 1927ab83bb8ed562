"""A model, its gradients and its state over several ranks: whole on each (DDP) or a part on each (FSDP2).

What is saved is whole and has no trace of the ranks, so that any number of them can go on with it.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from nanolm.config.trainer import Parallel
from nanolm.training.distributed.ranks import Ranks


def share(
    model: nn.Module, parallel: Parallel, ranks: Ranks, device: torch.device, dtype: torch.dtype | None = None
) -> Callable[..., torch.Tensor]:
    """What a training step calls in place of the model, so that every gradient becomes its mean over the ranks.

    With fsdp the parameters of the model itself are replaced by parts of them: the optimizer is made after this.

    Args:
        dtype: with fsdp, in which weights are gathered and computed with (None: fp32). Autocast would keep its own
            copies of all gathered weights until the backward pass; gradients are reduced in fp32 all the same.
    """
    if ranks.world_size == 1:
        return model
    if parallel is Parallel.ddp:
        # Buffers are tables, the same on every rank. torch 2.13 has another name for leaving them alone.
        names = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        alone: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False
        }
        # Gradients are views of the buckets that are reduced: no second copy of them.
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True, **alone)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy() if dtype is None else MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32)
    mesh = init_device_mesh(device.type, (ranks.world_size,))
    # Each layer is gathered when it is its turn, and those inside another one are told apart from it first.
    layers = [layer for stack in model.modules() if isinstance(stack, nn.ModuleList) for layer in stack]
    for part in (*reversed(layers), model):
        # The outermost too: what stayed gathered after an evaluation would hide a change of its parts.
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return model


def gradient_sync(forward: Callable[..., torch.Tensor], is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """Around the two passes of a part of a batch: whole gradients go between the ranks once an update, in the last.

    Those of a sharded model go with every part: to wait would mean to keep them whole.
    """
    no_sync = None if is_last else getattr(forward, "no_sync", None)
    return contextlib.nullcontext() if no_sync is None else no_sync()


def is_sharded(tensor: Any) -> bool:
    """Whether this rank has a part of it alone."""
    # Only a DTensor has the method; its module takes a third of a second to import.
    return hasattr(tensor, "to_local")


def local_shards(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The part of each tensor that is on this rank, in place."""
    return [tensor.to_local() if is_sharded(tensor) else tensor for tensor in tensors]  # type: ignore[attr-defined]


def total_norm(gradients: Sequence[torch.Tensor], ranks: Ranks) -> float:
    """The 2-norm of all gradients as one vector, the parts on other ranks included."""
    norm = torch.nn.utils.get_total_norm(local_shards(gradients)).item()
    return math.sqrt(ranks.sum(norm**2)) if any(map(is_sharded, gradients)) else norm


def whole(tree: Any) -> Any:
    """A tree of dicts, lists and tuples with every sharded tensor in it gathered on the CPU; all ranks must ask."""
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole(item) for item in tree)
    # A copy: what is gathered of parts of unequal length lies in a longer tensor.
    return tree.full_tensor().detach().cpu().clone() if is_sharded(tree) else tree


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A model without values, which takes no memory, for `share` to shard and `fill` to fill.

    Args:
        build: makes the model; one that cannot be made on the meta device is made in host memory for a moment.
    """
    try:
        with torch.device("meta"):
            return build().to("meta")
    except Exception:
        return build().to("meta")


def meta_copy(model: nn.Module) -> nn.Module:
    """A model without values, for `full_model` to fill a copy of; to be made before the model is sharded."""
    return copy.deepcopy(model).to("meta")


def fill(model: nn.Module, whole: nn.Module | None, ranks: Ranks, device: torch.device) -> None:
    """Give a model that was sharded on the meta device its values; all ranks must call it.

    Tensors are sent one at a time, so that no device holds more than its part of the model and one whole tensor.

    Args:
        whole: on rank 0 the model with its values, in host memory; None on the others.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    buffers: dict[str, torch.Tensor] = ranks.run_on_main(lambda: dict(whole.named_buffers()) if whole else {})
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, {} if whole is None else whole.state_dict(), options=options)


def full_model(model: nn.Module, frame: nn.Module) -> nn.Module:
    """All weights of a sharded model, on the CPU, in a copy of its frame; all ranks must ask."""
    tensors = model.state_dict(keep_vars=True)
    gathered = {id(tensor): whole(tensor) for tensor in tensors.values()}
    filled = copy.deepcopy(frame)
    filled.load_state_dict({name: gathered[id(tensor)] for name, tensor in tensors.items()}, assign=True)
    return filled


def shard_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer saved, whole, in the parts that its parameters here are in."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = {
        number: {name: shard_like(parameters[number], value) for name, value in buffers.items()}
        for number, buffers in saved["state"].items()
    }
    return {**saved, "state": parts}


def shard_like(parameter: torch.Tensor, value: Any) -> Any:
    """The part of a tensor that this rank has of a parameter of its shape; anything else as it is."""
    if not (is_sharded(parameter) and isinstance(value, torch.Tensor) and value.shape == parameter.shape):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    # Every rank has read the same file: nothing needs to be sent.
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
