import random

import numpy as np
import torch

from nanolm.training import rng

CPU = torch.device("cpu")


def draw() -> tuple[float, ...]:
    return (
        torch.rand(1).item(),
        torch.randn(3).sum().item(),
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
    )


def test_set_state_restores_every_generator() -> None:
    rng.seed_everything(3)
    draw()
    state = rng.get_state(CPU)
    first, second = draw(), draw()
    rng.set_state(state, CPU)
    assert (draw(), draw()) == (first, second)


def test_seed_determines_the_draws() -> None:
    rng.seed_everything(2**40 + 1)
    first = draw()
    rng.seed_everything(2**40 + 1)
    assert draw() == first
    rng.seed_everything(2)
    assert draw() != first
