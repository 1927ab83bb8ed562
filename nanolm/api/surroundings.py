"""Global state of Hydra, PyTorch and NumPy, which belongs to the program that calls nanolm."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from numpy.random import mtrand

# Set where Hydra runs a sweep, and before the first kernel on a GPU.
VARIABLES = ("HYDRA_FULL_ERROR", "CUBLAS_WORKSPACE_CONFIG")


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Restore at the end what composing and training change, random generators apart (`Generators`).

    These are Hydra's singletons, the environment variables that libraries read, PyTorch's precision of matrix products
    and its deterministic algorithms.
    """
    precision = torch.get_float32_matmul_precision()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    hydra, hydra_config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    variables = {name: os.environ.get(name) for name in VARIABLES}
    try:
        yield
    finally:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, hydra_config
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(is_deterministic, warn_only=warns_only)
        torch.set_float32_matmul_precision(precision)


class Generators:
    """The global random generators of PyTorch and NumPy, which a run and its caller use in turn.

    `exchange` takes microseconds, so that it can be called twice in every step. Python's own generator would take as
    long as the step of a bigram model.
    """

    def __init__(self) -> None:
        """Start with a copy of the present state."""
        self._numpy: np.random.BitGenerator = np.random.MT19937()
        self._numpy.state = np.random.get_state(legacy=False)  # type: ignore[assignment]
        self._torch = torch.default_generator.get_state()
        self._devices: list[torch.Tensor] = []

    def exchange(self) -> None:
        """Exchange the state of the global generators for the one that is kept here."""
        numpy, before = mtrand.get_bit_generator(), torch.default_generator.get_state()
        devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        mtrand.set_bit_generator(self._numpy)
        torch.default_generator.set_state(self._torch)
        if self._devices:
            torch.cuda.set_rng_state_all(self._devices)
        self._numpy, self._torch, self._devices = numpy, before, devices
