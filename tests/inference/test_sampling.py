import numpy as np
import pytest
import torch
from scipy import stats

from nanolm.inference.sampling import draw, process, uniform_draws
from nanolm.inference.settings import GenerationSettings

DRAWS = 100_000
LOGITS = (2.0, 1.5, 1.0, 0.3, 0.0, -0.5, -1.0, -1.2, -3.0, -6.0)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def restricted(is_kept: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    weights = np.where(is_kept, softmax(np.array(LOGITS) / temperature), 0.0)
    return weights / weights.sum()


ALL = np.ones(len(LOGITS), dtype=bool)
RANKS = np.arange(len(LOGITS))
# Cumulative probabilities of the tokens before each one; LOGITS are sorted.
BEFORE = np.concatenate([[0.0], softmax(np.array(LOGITS)).cumsum()[:-1]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (GenerationSettings(), restricted(ALL)),
        (GenerationSettings(temperature=0.5), restricted(ALL, 0.5)),
        (GenerationSettings(temperature=2.0), restricted(ALL, 2.0)),
        (GenerationSettings(top_k=3), restricted(RANKS < 3)),
        (GenerationSettings(top_p=0.8), restricted(BEFORE < 0.8)),
        (GenerationSettings(min_p=0.2), restricted(np.exp(np.array(LOGITS) - LOGITS[0]) >= 0.2)),
        (GenerationSettings(top_k=4, temperature=2.0), restricted(RANKS < 4, 2.0)),
    ],
    ids=["plain", "cold", "hot", "top_k", "top_p", "min_p", "top_k and hot"],
)
def test_draws_follow_the_definition(settings: GenerationSettings, expected: np.ndarray) -> None:
    generator = torch.Generator().manual_seed(7)
    uniform = torch.rand(DRAWS, 1, generator=generator, dtype=torch.float64)
    processed = process(torch.tensor([LOGITS]), None, settings)
    counts = np.bincount(draw(processed.expand(DRAWS, -1), uniform).numpy(), minlength=len(LOGITS))
    is_kept = expected > 0
    assert counts[~is_kept].sum() == 0
    assert stats.chisquare(counts[is_kept], expected[is_kept] * DRAWS).pvalue > 1e-3


def test_the_ends_of_the_unit_interval_draw_tokens_that_are_possible() -> None:
    logits = torch.tensor([[-torch.inf, 0.3, -torch.inf, 0.7, 0.1, -torch.inf]])
    ends = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    assert draw(logits.expand(2, -1), ends).tolist() == [1, 4]


def test_a_row_draws_as_it_does_alone() -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    together = draw(logits, uniform_draws([torch.Generator().manual_seed(seed) for seed in (4, 5, 6)]))
    alone = [
        draw(row[None], uniform_draws([torch.Generator().manual_seed(seed)]))
        for row, seed in zip(logits, (4, 5, 6), strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_top_p_beyond_the_first_candidates_equals_a_full_sort() -> None:
    # Nearly equal probabilities: top-p needs more tokens than are tried at first.
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)) * 0.1
    kept = process(logits, None, GenerationSettings(top_p=0.5)).isfinite()
    probabilities = logits.softmax(-1)
    for row, is_kept in zip(probabilities, kept, strict=True):
        assert row[is_kept].sum() >= 0.5 - 1e-5
        assert row[is_kept].sum() - row[is_kept].min() < 0.5 + 1e-5
        assert row[is_kept].min() >= row[~is_kept].max()


def test_tokens_of_equal_probability_are_kept_together() -> None:
    for settings in (GenerationSettings(top_k=1), GenerationSettings(top_p=0.1), GenerationSettings(min_p=1.0)):
        assert process(torch.zeros(1, 5), None, settings).isfinite().all()


@pytest.mark.slow
def test_samplers_equal_those_of_transformers() -> None:
    from transformers import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 2000, generator=generator) * 3
    text = torch.randint(2000, (4, 50), generator=generator)
    seen = torch.zeros(4, 2000, dtype=torch.bool).scatter_(1, text, True)
    for settings, theirs in (
        (GenerationSettings(repetition_penalty=1.3), [RepetitionPenaltyLogitsProcessor(1.3)]),
        (GenerationSettings(repetition_penalty=0.7), [RepetitionPenaltyLogitsProcessor(0.7)]),
        (GenerationSettings(temperature=0.7), [TemperatureLogitsWarper(0.7)]),
        (GenerationSettings(top_k=40), [TopKLogitsWarper(40)]),
        (GenerationSettings(top_p=0.9), [TopPLogitsWarper(0.9)]),
        (GenerationSettings(min_p=0.05), [MinPLogitsWarper(0.05)]),
        (
            GenerationSettings(repetition_penalty=1.2, temperature=0.8, top_k=200, top_p=0.95, min_p=0.01),
            [
                RepetitionPenaltyLogitsProcessor(1.2),
                TemperatureLogitsWarper(0.8),
                TopKLogitsWarper(200),
                TopPLogitsWarper(0.95),
                MinPLogitsWarper(0.01),
            ],
        ),
    ):
        expected = logits
        for processor in theirs:
            expected = processor(text, expected)
        found = process(logits, seen, settings)
        assert torch.equal(found.isfinite(), expected.isfinite())
        torch.testing.assert_close(found.softmax(-1), expected.softmax(-1))
