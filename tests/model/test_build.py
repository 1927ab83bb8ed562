import torch

from nanolm.model.build import build
from tests.helpers import make_config


def test_weights_depend_on_the_seed_only() -> None:
    first = build(make_config("seed=5"), 20)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second, third = build(make_config("seed=5"), 20), build(make_config("seed=6"), 20)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(third.parameters()))
