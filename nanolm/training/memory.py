"""Memory that a run asks for: compared with the machine's before it is allocated, and reported when it is refused."""

from __future__ import annotations

import contextlib
import errno
import functools
import re
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

import torch

from nanolm.config.run import Config
from nanolm.config.trainer import Precision
from nanolm.errors import NanolmError, OutOfMemoryError, SettingsError
from nanolm.machine import batch_bytes, host_memory
from nanolm.model import count, memory_estimate
from nanolm.model.shapes import has_formula
from nanolm.runs.console import in_units
from nanolm.torchrun import world_size

P = ParamSpec("P")
R = TypeVar("R")

# What torch and numpy say when memory is short, or when a size does not fit 64 bits.
REFUSALS = re.compile(
    r"can't allocate memory|not enough memory|out of memory|ALLOC_FAILED|unable to allocate|array is too big"
    r"|maximum allowed (dimension|size)|(size|numel|stride|multiplication|unpacking).*overflow"
    r"|overflow.*(size|numel|stride|unpacking)",
    re.IGNORECASE,
)
LOGITS = "the logits of a micro-batch"
# How they say how much was asked for.
ASKED = re.compile(r"tried to allocate ([\d.]+ ?[a-z]+)|unable to allocate ([^\n]+)", re.IGNORECASE)


def require_memory(config: Config, vocab_size: int, device: torch.device, is_sharded: bool = False) -> None:
    """Refuse a run that cannot fit, before anything is allocated: the system may end a process without a word.

    Counted are only what is surely held at once: the weights, their gradients and the optimizer's state, the tokens of
    a batch, and the logits of a micro-batch. A model without a formula is not looked at.

    Raises:
        SettingsError: more is needed than the device, or the machine, has.
    """
    if not has_formula(config):
        return
    n, trainer = world_size(), config.trainer
    sequences, context_length = trainer.batch_size // n, config.size.context_length
    state = memory_estimate.state_memory(config, count.total(count.parameters(config, vocab_size)), vocab_size)
    width = 2 if trainer.precision in (Precision.auto, Precision.bf16, Precision.fp16) else 4
    logits_of_one = context_length * vocab_size * width
    on_device = {
        "the weights, the gradients and the optimizer": count.total(state) // (n if is_sharded else 1),
        LOGITS: sequences // trainer.gradient_accumulation * logits_of_one,
    }
    on_host = {"the tokens of a batch": batch_bytes(sequences, context_length)}
    if device.type != "cuda":
        on_host |= on_device
    elif sum(on_device.values()) > (has := torch.cuda.get_device_properties(device).total_memory):
        raise _too_much(config, on_device, f"{device} has", has, logits_of_one)
    host = host_memory()
    if host is not None and sum(on_host.values()) > host:
        raise _too_much(config, on_host, "this machine has", host, logits_of_one)


@contextlib.contextmanager
def translate_memory_errors(config: Config) -> Iterator[None]:
    """Translate the errors of torch and numpy when memory runs out.

    Raises:
        OutOfMemoryError: memory was refused.
    """
    try:
        yield
    except NanolmError:
        raise
    except (MemoryError, RuntimeError, ValueError, TypeError, OverflowError, OSError) as error:
        if not is_refusal(error):
            raise
        asked = ASKED.search(str(error))
        amount = "" if asked is None else f": {(asked[1] or asked[2]).strip().rstrip('.')} asked for at once"
        raise OutOfMemoryError(f"out of memory{amount}", where=_where(config), hint=_hint(config)) from error


def translates_memory_errors(function: Callable[Concatenate[Config, P], R]) -> Callable[Concatenate[Config, P], R]:
    """Run a function whose first argument is the config inside `translate_memory_errors`."""

    @functools.wraps(function)
    def wrapped(config: Config, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with translate_memory_errors(config):
            return function(config, *args, **kwargs)

    return wrapped


def is_refusal(error: BaseException) -> bool:
    """Return whether an error says that memory was refused."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return REFUSALS.search(str(error)) is not None


def _too_much(config: Config, parts: dict[str, int], what: str, has: int, logits_of_one: int) -> SettingsError:
    words = ", ".join(f"{name} {in_units(amount)}" for name, amount in parts.items())
    # What gradient accumulation makes smaller, and what it leaves as it is.
    free = has - sum(parts.values()) + parts.get(LOGITS, 0)
    sequences = max(0, free) // logits_of_one
    return SettingsError(
        f"the run needs at least {in_units(sum(parts.values()))} of memory, and {what} {in_units(has)}: {words}",
        where=_where(config),
        hint=_hint(config, sequences if LOGITS in parts else 0),
    )


def _where(config: Config) -> str:
    size, trainer = config.size, config.trainer
    return (
        f"trainer.batch_size={trainer.batch_size}, trainer.gradient_accumulation={trainer.gradient_accumulation}, "
        f"size.d_model={size.d_model}, size.n_layers={size.n_layers}, size.context_length={size.context_length}"
    )


def _hint(config: Config, most_sequences: int | None = None) -> str:
    """What needs less: gradient accumulation first, which changes no number.

    Args:
        config: the run's.
        most_sequences: that a micro-batch may have to fit, where that is known; 0 if nothing fits.
    """
    trainer = config.trainer
    smaller = "a smaller size or trainer.batch_size; `nanolm count` shows what takes the memory"
    if most_sequences == 0:
        return (
            f"{smaller}; gradient accumulation (trainer.gradient_accumulation) makes the same update in less, "
            "but does not save enough here"
        )
    share = trainer.batch_size // world_size()
    least = max(trainer.gradient_accumulation + 1, -(-share // most_sequences) if most_sequences else 0)
    finer = next((n for n in range(least, min(share, least * 64) + 1) if share % n == 0), None)
    if finer is None:
        return smaller
    return f"trainer.gradient_accumulation={finer} makes the same update in less memory; or {smaller}"
