"""Data-parallel models: replicated on every rank (DDP) or sharded over the ranks (FSDP2).

Checkpoints hold full tensors and no trace of the ranks, so that a run can resume on any number of them.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from nanolm.config.trainer import Parallel
from nanolm.model.lora import adapters
from nanolm.training.distributed.ranks import Ranks


def parallelize(
    model: nn.Module, parallel: Parallel, ranks: Ranks, device: torch.device, dtype: torch.dtype | None = None
) -> Callable[..., torch.Tensor]:
    """Return what a training step calls in place of the model, so that gradients are averaged over the ranks.

    With fsdp the parameters of the model itself are replaced by shards; create the optimizer after this.

    Args:
        model: on the device, or with fsdp on the meta device.
        ranks: a single process gets the model back.
        dtype: with fsdp, dtype of gathered weights and of the computation; None is fp32. (Autocast would keep its own
            copies of all gathered weights until the backward pass.) Gradients are reduced in fp32 all the same.
    """
    if ranks.world_size == 1:
        return model
    if parallel is Parallel.ddp:
        # Buffers are constant tables, the same on every rank; the option not to sync them was renamed in torch 2.13.
        names = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        no_buffers: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False
        }
        # Gradients are views of the buckets that are reduced: no second copy of them.
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True, **no_buffers)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy() if dtype is None else MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32)
    mesh = init_device_mesh(device.type, (ranks.world_size,))
    # Each layer is gathered when it runs; nested layers must be sharded before the layer that contains them.
    layers = [layer for stack in model.modules() if isinstance(stack, nn.ModuleList) for layer in stack]
    for module in (*reversed(layers), model):
        # The root is resharded too: weights kept from an evaluation would not see later updates of their shards.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return model


def gradient_sync(forward: Callable[..., torch.Tensor], is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """Synchronize gradients only on the last micro-batch.

    FSDP synchronizes on every micro-batch: waiting would mean to keep full gradients.
    """
    no_sync = None if is_last else getattr(forward, "no_sync", None)
    return contextlib.nullcontext() if no_sync is None else no_sync()


def is_sharded(tensor: Any) -> bool:
    """Return whether a tensor is a DTensor, of which this rank holds a shard."""
    # Not isinstance: the module of DTensor takes a third of a second to import.
    return hasattr(tensor, "to_local")


def local_shards(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return this rank's shard of each tensor, without copying."""
    return [tensor.to_local() if is_sharded(tensor) else tensor for tensor in tensors]  # type: ignore[attr-defined]


def total_norm(gradients: list[torch.Tensor], ranks: Ranks) -> torch.Tensor:
    """Return the L2 norm of all gradients as one vector, including the shards on other ranks, as a 0-d tensor."""
    has_shards = ranks.world_size > 1 and any(map(is_sharded, gradients))
    norms = torch._foreach_norm(local_shards(gradients) if has_shards else gradients)
    norm = torch.linalg.vector_norm(torch.stack(norms))
    return ranks.sum_on_device(norm.double() ** 2).sqrt() if has_shards else norm


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model on the meta device, for `parallelize` to shard and `fill` to initialize.

    Args:
        build: creates the model; if it cannot run on the meta device, it runs in host memory first.
    """
    try:
        with torch.device("meta"):
            return build().to("meta")
    except Exception:
        return build().to("meta")


def fill(model: nn.Module, full: nn.Module | None, ranks: Ranks, device: torch.device) -> None:
    """Give a model that was sharded on the meta device its values; all ranks must call it.

    Tensors are sent one at a time, so that no device holds more than its shards and one full tensor.

    Args:
        full: on rank 0 the model with its values, in host memory; None on the others.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    buffers: dict[str, torch.Tensor] = ranks.run_on_main(lambda: dict(full.named_buffers()) if full else {})
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, {} if full is None else full.state_dict(), options=options)


def full_weights(model: nn.Module, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Return the full state dict of a model on rank 0, and an empty one elsewhere; all ranks must call it.

    Tied weights are one tensor under several names, as in the state dict of a model that is not sharded. Of a model
    with low-rank adapters, only they are returned.
    """
    trained = adapters(model)
    if not any(map(is_sharded, model.parameters())):
        state = model.state_dict() if ranks.is_main else {}
        return {name: state[name] for name in trained if state} or state
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=bool(trained))
    full: dict[str, Any] = get_model_state_dict(model, options=options)
    first_names: dict[int, str] = {}
    tensors = trained or model.state_dict(keep_vars=True)
    return {name: full[first_names.setdefault(id(tensor), name)] for name, tensor in tensors.items() if full}


# Optimizer state is not gathered by torch.distributed.checkpoint.state_dict: it calls step() on an optimizer without
# state, which would advance the counters of ours, and it renames parameters from their numbers to their names.
def gather_full(state: Any, ranks: Ranks) -> Any:
    """Gather the sharded tensors in nested dicts, lists and tuples; all ranks must call it.

    Returns:
        The same structure; on rank 0 with full tensors in host memory, elsewhere with None instead.
    """
    if isinstance(state, dict):
        return {key: gather_full(value, ranks) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gather_full(item, ranks) for item in state)
    if not is_sharded(state):
        return state
    full = state.full_tensor()
    # A copy: a tensor that is gathered from shards of unequal length is a view of a longer one.
    return full.detach().cpu().clone() if ranks.is_main else None


def shard_optimizer_state(optimizer: torch.optim.Optimizer, full: dict[str, Any]) -> dict[str, Any]:
    """Shard a full optimizer state dict as the parameters of an optimizer are sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shards = {
        number: {name: shard_like(parameters[number], value) for name, value in tensors.items()}
        for number, tensors in full["state"].items()
    }
    return {**full, "state": shards}


def shard_like(parameter: torch.Tensor, value: Any) -> Any:
    """Shard a tensor that has the shape of a sharded parameter in the same way; return any other value unchanged."""
    if not (is_sharded(parameter) and isinstance(value, torch.Tensor) and value.shape == parameter.shape):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    # Every rank has read the same file: nothing needs to be sent.
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
