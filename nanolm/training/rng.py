"""The random generators that a training step draws from (dropout, and whatever a user's model adds)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Puts every global generator at the start of a run."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def seed_rank(seed: int, step: int, rank: int) -> None:
    """Puts every global generator where a rank begins that has no state of its own to go on with.

    Rank 0 begins at the seed, any other at a number that follows from the seed, the step it joins at and its rank.
    """
    derived = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    seed_everything(int(derived[0]) if rank else seed)


def get_state(device: torch.device) -> dict[str, Any]:
    """The state of every global generator, as tensors and plain numbers."""
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
    """Puts every global generator where `get_state` found it. Called last, so that nothing draws after it (C6)."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
    torch.set_rng_state(state["torch"])
