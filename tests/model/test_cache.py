import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.config.model import Positions
from nanolm.model.build import build
from nanolm.model.cache import settled_positions
from nanolm.model.sampling import follow, sample
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
    """The text grows a token at a time, to twice the context."""
    tokens = torch.randint(11, (2 * LENGTH + 3,))
    cached, uncached = (follow(built, LENGTH, stride, use_cache) for use_cache in (True, False))
    with torch.no_grad():
        for length in range(3, len(tokens) + 1):
            found, expected = cached(tokens[:length]), uncached(tokens[:length])
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=f"behind {length} tokens")


@pytest.mark.parametrize("positions", Positions, ids=lambda positions: positions.name)
@pytest.mark.parametrize("mask", MASKS)
def test_cached_logits_are_the_uncached_ones(mask: str, positions: Positions) -> None:
    require_equal_logits(small(*mask.split(), f"model.positions={positions.name}"))


@pytest.mark.parametrize("mask", MASKS)
def test_the_plain_mean_has_a_cache_too(mask: str) -> None:
    require_equal_logits(small(*mask.split(), "model.attention=uniform", "model.positions=learned"))


@pytest.mark.parametrize("path", ["dense", "sdpa", "blocked"])
def test_a_path_that_is_forced_has_a_cache(path: str) -> None:
    require_equal_logits(small("mask=banded_causal", "mask.window=3", f"trainer.attention_backend={path}"))


def test_heads_of_any_width_have_a_cache() -> None:
    require_equal_logits(small("size.d_key=6", "size.d_value=3", "model=gpt2"))


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        # Each call sees the last token alone; those of a window that moved, all of it.
        ("mask=causal", [5, 1, 1, 1]),
        ("mask=banded_causal mask.window=3", [5, 1, 1, 1]),
        # A new token changes the one before it in the first layer, the one before that in the second, ...
        ("mask=banded mask.window=1", [5, 3, 3, 3]),
        ("mask=none", [5, 6, 7, 8]),
    ],
)
def test_only_what_may_change_is_computed(mask: str, expected: list[int]) -> None:
    built = small(*mask.split())
    fed = []
    built.token_embedding.register_forward_pre_hook(lambda module, inputs: fed.append(inputs[0].size(1)))  # type: ignore[union-attr,operator]
    next_logits = follow(built, LENGTH, 4)
    tokens = torch.randint(11, (8,))
    with torch.no_grad():
        for length in range(5, 9):
            next_logits(tokens[:length])
    assert fed == expected


def test_past_the_context_the_window_moves_by_its_stride() -> None:
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
def test_what_is_settled_is_changed_by_no_later_token(seed: int, length: int, n_layers: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tables: list[torch.Tensor | None] = [
        (torch.rand(length, length, generator=generator) < 0.2) | torch.eye(length, dtype=torch.bool)
        for _ in range(n_layers)
    ]
    settled = settled_positions(tables, length).tolist()
    for known in range(length + 1):
        # By reach: which inputs each position's state depends on, layer after layer.
        depends = torch.eye(length, dtype=torch.bool)
        for table in tables:
            assert table is not None
            depends = (table.float() @ depends.float()) > 0
        changed = depends[:, known:].any(dim=1).nonzero().flatten().tolist()
        assert settled[known] <= min([*changed, known])
    assert settled_positions([None] * n_layers, length).tolist() == list(range(length + 1))
