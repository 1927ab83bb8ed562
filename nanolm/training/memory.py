"""Memory checks before allocation, and translation of out-of-memory errors."""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Iterator

import torch

from nanolm.config.batch_schedule import largest_stage
from nanolm.config.help import format_value
from nanolm.config.run import Config
from nanolm.config.trainer import Precision
from nanolm.errors import NanolmError, OutOfMemoryError, SettingsError
from nanolm.machine import batch_bytes, host_memory
from nanolm.model import count, memory_estimate
from nanolm.model.loss_chunks import LOGITS_PER_CHUNK, is_chunked
from nanolm.model.shapes import has_formula
from nanolm.torchrun import world_size
from nanolm.wording import format_bytes

# Messages of torch and numpy when memory is short, or when a size does not fit 64 bits.
MESSAGES = re.compile(
    r"can't allocate memory|not enough memory|out of memory|ALLOC_FAILED|unable to allocate|array is too big"
    r"|maximum allowed (dimension|size)|(size|numel|stride|multiplication|unpacking).*overflow"
    r"|overflow.*(size|numel|stride|unpacking)",
    re.IGNORECASE,
)
LOGITS = "the logits of a micro-batch"
# The requested amount in such messages.
REQUESTED = re.compile(r"tried to allocate ([\d.]+ ?[a-z]+)|unable to allocate ([^\n]+)", re.IGNORECASE)


def require_memory(config: Config, vocab_size: int, device: torch.device, is_sharded: bool = False) -> None:
    """Refuse a run that cannot fit before anything is allocated, since the system may kill a process silently.

    The estimate is a lower bound: weights, gradients and optimizer state, tables of positions, masks, the tokens of a
    batch, and the logits of a micro-batch. Models without a formula are not checked.

    Args:
        is_sharded: whether the weights are divided among the ranks.

    Raises:
        SettingsError: the device or the machine has less memory.
    """
    if not has_formula(config):
        return
    n_ranks, trainer = world_size(), config.trainer
    stage = largest_stage(config)
    sequences, context_length = stage.batch_size // n_ranks, stage.context_length
    state = memory_estimate.state_memory(config, count.total(count.parameters(config, vocab_size)), vocab_size)
    width = 2 if trainer.precision in (Precision.auto, Precision.bf16, Precision.fp16) else 4
    n_sequences = sequences // trainer.gradient_accumulation
    in_chunks = is_chunked(config, n_sequences * context_length, vocab_size)
    most_logits = LOGITS_PER_CHUNK if in_chunks else None
    logits_of_one = min(context_length * vocab_size, most_logits or sys.maxsize) * width
    on_device = {
        "the weights, the gradients and the optimizer": count.total(state) // (n_ranks if is_sharded else 1),
        LOGITS: min(n_sequences * logits_of_one, (most_logits or sys.maxsize) * width),
    }
    if tables := memory_estimate.table_memory(config, vocab_size):
        on_device["positions"] = tables
    on_host = {"the tokens of a batch": batch_bytes(sequences, context_length)}
    if masks := memory_estimate.mask_memory(config):
        on_host["masks"] = masks
    limits = []
    if device.type == "cuda":
        limits.append((on_device, f"{device} has", torch.cuda.get_device_properties(device).total_memory))
    else:
        on_host |= on_device
    for parts, what, has in [*limits, (on_host, "this machine has", host_memory())]:
        needed = sum(parts.values())
        if has is None or needed <= has:
            continue
        # Gradient accumulation reduces the logits only.
        most_sequences = max(0, has - needed + parts[LOGITS]) // logits_of_one if LOGITS in parts else 0
        amounts = ", ".join(f"{name} {format_bytes(amount)}" for name, amount in parts.items())
        raise SettingsError(
            f"the run needs at least {format_bytes(needed)} of memory, and {what} {format_bytes(has)}: {amounts}",
            where=_where(config),
            hint=_hint(config, most_sequences),
        )


@contextlib.contextmanager
def translate_memory_errors(config: Config) -> Iterator[None]:
    """Translate out-of-memory errors of torch and numpy.

    Raises:
        OutOfMemoryError: an allocation failed.
    """
    try:
        yield
    except NanolmError:
        raise
    except (MemoryError, RuntimeError, ValueError, TypeError, OverflowError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        requested = REQUESTED.search(str(error))
        amount = "" if requested is None else f": {(requested[1] or requested[2]).strip().rstrip('.')} requested"
        raise OutOfMemoryError(f"out of memory{amount}", where=_where(config), hint=_hint(config)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that an allocation failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return MESSAGES.search(str(error)) is not None


def _where(config: Config) -> str:
    size, trainer = config.size, config.trainer
    schedules = {"batch_size_schedule": trainer.batch_size_schedule}
    schedules["context_length_schedule"] = trainer.context_length_schedule
    return "".join(f"trainer.{key}={format_value(value)}, " for key, value in schedules.items() if value) + (
        f"trainer.batch_size={trainer.batch_size}, trainer.gradient_accumulation={trainer.gradient_accumulation}, "
        f"size.d_model={size.d_model}, size.n_layers={size.n_layers}, size.context_length={size.context_length}"
    )


def _hint(config: Config, most_sequences: int | None = None) -> str:
    """Suggest settings that need less memory: gradient accumulation first, which does not change the results.

    Args:
        most_sequences: the largest micro-batch that fits; None if unknown, 0 if none does.
    """
    trainer = config.trainer
    smaller = "use a smaller size or trainer.batch_size; `nanolm count` shows what takes the memory"
    if most_sequences == 0:
        return (
            f"{smaller}; gradient accumulation (trainer.gradient_accumulation) makes the same update in less memory, "
            "but not enough less here"
        )
    share = largest_stage(config).batch_size // world_size()
    least = max(trainer.gradient_accumulation + 1, -(-share // most_sequences) if most_sequences else 0)
    finer = next((n for n in range(least, min(share, least * 64) + 1) if share % n == 0), None)
    if finer is None:
        return smaller
    return f"trainer.gradient_accumulation={finer} makes the same update in less memory; or {smaller}"
