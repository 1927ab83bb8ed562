"""Global random generators, from which a training step may draw (dropout, user models)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from nanolm.training.checkpoints.values import (
    COUNT,
    FINITE,
    FINITE_OR_NULL,
    TABLE,
    TENSOR,
    require_table,
    require_tensor,
)

# Words in the state of a Mersenne Twister.
MERSENNE_WORDS = 624


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def seed_rank(seed: int, step: int, rank: int) -> None:
    """Seed the global generators of a rank that has no saved state.

    Args:
        seed: of the run; rank 0 uses it unchanged.
        step: at which the rank joins the run.
        rank: other ranks derive their seed from all three numbers.
    """
    derived = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    seed_everything(int(derived[0]) if rank else seed)


def get_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the global generators as tensors and plain numbers."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `get_state` returned. Call it last on resume, so that nothing draws random numbers after it.

    Raises:
        ValueError: the state is not one of these generators.
    """
    require_table(
        state,
        dict.fromkeys(("torch", "cuda", "mps"), TENSOR) | {"python": TABLE, "numpy": TABLE},
        "rng",
        ("cuda", "mps"),
    )
    python, numpy = state["python"], state["numpy"]
    require_table(python, {"version": COUNT, "words": TENSOR, "gauss": FINITE_OR_NULL}, "rng.python")
    require_table(numpy, {"keys": TENSOR, "position": COUNT, "has_gauss": COUNT, "cached": FINITE}, "rng.numpy")
    require_tensor(python["words"], (MERSENNE_WORDS + 1,), False, "rng.python.words")
    require_tensor(numpy["keys"], (MERSENNE_WORDS,), False, "rng.numpy.keys")
    # NumPy would read beyond the end of its keys.
    if numpy["position"] > MERSENNE_WORDS:
        raise ValueError(f"rng.numpy.position is {numpy['position']}, not at most {MERSENNE_WORDS}")
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    try:
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
        if device.type == "mps" and "mps" in state:
            torch.mps.set_rng_state(state["mps"])
        torch.set_rng_state(state["torch"])
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"rng is no state of torch's generator: {error}") from error
