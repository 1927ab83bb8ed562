import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.config.model import Positions
from nanolm.model.build import build
from nanolm.model.cache import count_final_positions
from nanolm.model.sampling import next_logits_fn, sample
from tests.helpers import make_config, randomize_weights

LENGTH = 12
MASKS = (
    "mask=causal",
    "mask=none",
    "mask=banded mask.window=2",
    "mask=banded_causal mask.window=3",
    "mask=prefix mask.prefix_length=6",
    "mask=strided mask.stride=3",
    "mask=block_local mask.block_size=5",
    "mask=banded mask.window=1 mask.pattern=[causal,banded,prefix]",
)


def small(*overrides: str) -> torch.nn.Module:
    built = build(
        make_config("size.n_layers=2", "size.n_heads=2", "size.d_model=8", f"size.context_length={LENGTH}", *overrides),
        11,
    )
    randomize_weights(built)
    return built.eval()


def require_equal_logits(built: torch.nn.Module, stride: int = 4) -> None:
    """Compare both for a text that grows token by token to twice the context length."""
    tokens = torch.randint(11, (2 * LENGTH + 3,))
    cached, uncached = (next_logits_fn(built, LENGTH, stride, use_cache) for use_cache in (True, False))
    with torch.no_grad():
        for length in range(3, len(tokens) + 1):
            found, expected = cached(tokens[:length]), uncached(tokens[:length])
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=f"after {length} tokens")


@pytest.mark.parametrize("positions", Positions, ids=lambda positions: positions.name)
@pytest.mark.parametrize("mask", MASKS)
def test_cached_logits_equal_uncached_logits(mask: str, positions: Positions) -> None:
    require_equal_logits(small(*mask.split(), f"model.positions={positions.name}"))


@pytest.mark.parametrize("mask", MASKS)
def test_uniform_attention_supports_the_cache(mask: str) -> None:
    require_equal_logits(small(*mask.split(), "model.attention=uniform", "model.positions=learned"))


@pytest.mark.parametrize("backend", ["dense", "sdpa", "blocked"])
def test_backend_supports_the_cache(backend: str) -> None:
    require_equal_logits(small("mask=banded_causal", "mask.window=3", f"trainer.attention_backend={backend}"))


def test_cache_supports_separate_key_and_value_widths() -> None:
    require_equal_logits(small("size.d_key=6", "size.d_value=3", "model=gpt2"))


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        # Under a causal mask each call reads the new token only.
        ("mask=causal", [5, 1, 1, 1]),
        ("mask=banded_causal mask.window=3", [5, 1, 1, 1]),
        # A new token changes its predecessor in the first layer, that one's predecessor in the second, ...
        ("mask=banded mask.window=1", [5, 3, 3, 3]),
        ("mask=none", [5, 6, 7, 8]),
    ],
)
def test_cache_recomputes_only_positions_that_change(mask: str, expected: list[int]) -> None:
    built = small(*mask.split())
    fed = []
    built.token_embedding.register_forward_pre_hook(lambda module, inputs: fed.append(inputs[0].size(1)))  # type: ignore[union-attr,operator]
    next_logits = next_logits_fn(built, LENGTH, 4)
    tokens = torch.randint(11, (8,))
    with torch.no_grad():
        for length in range(5, 9):
            next_logits(tokens[:length])
    assert fed == expected


def test_a_full_context_drops_stride_tokens() -> None:
    built = small()
    fed = []
    built.token_embedding.register_forward_pre_hook(lambda module, inputs: fed.append(inputs[0].size(1)))  # type: ignore[union-attr,operator]
    sample(built, torch.tensor([1]), LENGTH + 6, context_length=LENGTH, stride=4)
    assert fed == [1] * LENGTH + [LENGTH - 3, 1, 1, 1, LENGTH - 3, 1]


@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 12),
    n_layers=st.integers(1, 3),
)
@settings(max_examples=60)
def test_final_positions_depend_on_no_later_token(seed: int, length: int, n_layers: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks: list[torch.Tensor | None] = [
        (torch.rand(length, length, generator=generator) < 0.2) | torch.eye(length, dtype=torch.bool)
        for _ in range(n_layers)
    ]
    final = count_final_positions(masks, length).tolist()
    for known in range(length + 1):
        # The inputs that each position depends on after all layers.
        depends = torch.eye(length, dtype=torch.bool)
        for mask_TxT in masks:
            assert mask_TxT is not None
            depends = (mask_TxT.float() @ depends.float()) > 0
        changed = depends[:, known:].any(dim=1).nonzero().flatten().tolist()
        assert final[known] <= min([*changed, known])
    assert count_final_positions([None] * n_layers, length).tolist() == list(range(length + 1))
