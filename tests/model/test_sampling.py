import pytest
import torch

from nanolm.errors import DivergedError
from nanolm.model.build import build
from nanolm.model.sampling import sample
from tests.helpers import make_config


class Successor(torch.nn.Module):
    """Predicts n + 1 after n, with a given logit."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit
        self.max_length = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.max_length = max(self.max_length, tokens.size(1))
        return self.logit * torch.nn.functional.one_hot((tokens + 1) % 10, 10).float()


def test_temperature_zero_takes_the_most_likely_token() -> None:
    written = sample(Successor(0.1), torch.tensor([3]), 5, context_length=4, temperature=0)
    assert written.tolist() == [4, 5, 6, 7, 8]


def test_top_k_samples_from_the_most_likely_tokens() -> None:
    assert sample(Successor(0.1), torch.tensor([3]), 5, context_length=4, top_k=1).tolist() == [4, 5, 6, 7, 8]
    assert sample(Successor(0.1), torch.tensor([3]), 5, context_length=4, top_k=99).numel() == 5


def test_samples_follow_the_distribution() -> None:
    written = torch.cat([sample(Successor(2.0), torch.tensor([0]), 50, context_length=4, seed=s) for s in range(40)])
    before = torch.cat([torch.tensor([0]), written[:-1]])
    before[::50] = 0
    share = (written == (before + 1) % 10).float().mean().item()
    expected = torch.tensor(2.0).exp().item() / (torch.tensor(2.0).exp().item() + 9)
    # 2,000 draws with p = 0.45: standard deviation 0.011
    assert abs(share - expected) < 5 * 0.011


def test_sampling_respects_the_context_length() -> None:
    model = Successor(1.0)
    sample(model, torch.arange(9), 6, context_length=4)
    assert model.max_length == 4


def test_sampling_leaves_training_state_unchanged() -> None:
    model = build(make_config("model.dropout=0.5", "size.context_length=8"), 10).train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = sample(model, torch.tensor([1]), 12, context_length=8, seed=3)
    assert torch.equal(first, sample(model, torch.tensor([1]), 12, context_length=8, seed=3))
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_a_tiny_temperature_takes_the_most_likely_token() -> None:
    for temperature in (1e-30, 1e-45, 5e-324):
        written = sample(Successor(100.0), torch.tensor([3]), 5, context_length=4, temperature=temperature)
        assert written.tolist() == [4, 5, 6, 7, 8]


def test_non_finite_logits_raise() -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(DivergedError, match="the logits of the model are not finite"):
            sample(Successor(torch.nan), torch.tensor([3]), 5, context_length=4, temperature=temperature)
