from collections.abc import Callable

import pytest
import torch

from nanolm.config.mask import (
    BandedCausalConfig,
    BandedConfig,
    BlockLocalConfig,
    CausalConfig,
    DocumentConfig,
    MaskConfig,
    NoMaskConfig,
    PrefixConfig,
    StridedConfig,
    layer_masks,
)
from nanolm.config.run import Config
from nanolm.errors import SettingsError
from nanolm.model import masks
from nanolm.model.build import build
from nanolm.model.sampling import sample
from nanolm.registry import MASKS
from tests.helpers import make_config, randomize_weights

LENGTH = 13

# Overrides of each mask, whether it is non-causal, and the positions that position 7 of 13 sees.
BY_HAND = {
    "mask=none": (True, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    "mask=causal": (False, [0, 1, 2, 3, 4, 5, 6, 7]),
    "mask=document": (False, [0, 1, 2, 3, 4, 5, 6, 7]),
    "mask=banded mask.window=2": (True, [5, 6, 7, 8, 9]),
    "mask=banded_causal mask.window=2": (False, [5, 6, 7]),
    "mask=prefix mask.prefix_length=10": (True, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    "mask=strided mask.stride=3": (False, [1, 4, 7]),
    "mask=block_local mask.block_size=5": (False, [5, 6, 7]),
}
PATTERNS = (
    "mask=banded_causal mask.window=2 mask.pattern=SL",
    "mask=pattern mask.pattern=[strided,banded_causal] mask.stride=3 mask.window=2",
)
CAUSAL = [overrides for overrides, (is_noncausal, _) in BY_HAND.items() if not is_noncausal] + list(PATTERNS)
NONCAUSAL = [overrides for overrides, (is_noncausal, _) in BY_HAND.items() if is_noncausal]


def small(overrides: str) -> Config:
    return make_config(*overrides.split(), f"size.context_length={LENGTH}", "size.n_layers=2", "size.d_model=16")


@pytest.mark.parametrize("overrides", BY_HAND)
def test_mask_row_matches_the_expected_positions(overrides: str) -> None:
    is_noncausal, expected = BY_HAND[overrides]
    mask_TxT = masks.dense_mask(small(overrides).mask, LENGTH)
    assert mask_TxT[7].nonzero().flatten().tolist() == expected
    assert (masks.first_future_pair(mask_TxT) is not None) == is_noncausal


# Definitions for one pair of positions.
DEFINITIONS: list[tuple[MaskConfig, Callable[[int, int], bool]]] = [
    (NoMaskConfig(), lambda query, key: True),
    (CausalConfig(), lambda query, key: key in range(query + 1)),
    (DocumentConfig(), lambda query, key: key in range(query + 1)),
    (BandedConfig(window=3), lambda query, key: key in range(query - 3, query + 4)),
    (BandedCausalConfig(window=3), lambda query, key: key in range(query - 3, query + 1)),
    (PrefixConfig(prefix_length=4), lambda query, key: key < 4 or key in range(query + 1)),
    (StridedConfig(stride=4), lambda query, key: key in range(query, -1, -4)),
    (BlockLocalConfig(block_size=4), lambda query, key: key in range(query - query % 4, query + 1)),
]


@pytest.mark.parametrize(("config", "sees"), DEFINITIONS, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("length", [1, 2, 7, 17])
def test_mask_matches_its_definition(config: MaskConfig, sees: Callable[[int, int], bool], length: int) -> None:
    expected = [[sees(query, key) for key in range(length)] for query in range(length)]
    assert masks.dense_mask(config, length).tolist() == expected


def test_definitions_cover_every_built_in_mask() -> None:
    built_in = {name for name in MASKS if MASKS[name].__module__.startswith("nanolm.")}
    assert built_in == {config.name for config, _ in DEFINITIONS}
    assert built_in == {small(overrides).mask.name for overrides in BY_HAND}


def influence(overrides: str) -> torch.Tensor:
    """Return the gradient norm of the logits at t (row) with respect to the embedding of token s (column)."""
    built = build(small(overrides), 11)
    randomize_weights(built)
    embedded: list[torch.Tensor] = []
    built.token_embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))  # type: ignore[union-attr,operator]
    logits = built(torch.randint(11, (1, LENGTH)))
    rows = []
    for t in range(LENGTH):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), embedded[0], retain_graph=True)
        rows.append(gradient[0].abs().sum(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("overrides", [*BY_HAND, *PATTERNS])
def test_model_depends_on_visible_positions_only(overrides: str) -> None:
    first, second = (masks.dense_mask(mask, LENGTH).long() for mask in layer_masks(small(overrides)))
    influences = influence(overrides) > 0
    assert torch.equal(influences, second @ first > 0)
    assert bool(influences.triu(1).any()) == (overrides in NONCAUSAL)


@pytest.mark.parametrize("overrides", CAUSAL)
def test_logits_do_not_depend_on_the_input_length(overrides: str) -> None:
    built = build(small(overrides), 11).eval()
    randomize_weights(built)
    tokens = torch.randint(11, (2, LENGTH))
    for length in (1, 6):
        torch.testing.assert_close(built(tokens[:, :length]), built(tokens)[:, :length], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("overrides", [*BY_HAND, *PATTERNS])
def test_model_with_any_mask_can_sample(overrides: str) -> None:
    built = build(small(overrides), 11)
    randomize_weights(built)
    for length in range(1, LENGTH + 1):
        assert built(torch.randint(11, (1, length))).isfinite().all()
    written = sample(built, torch.tensor([3]), 2 * LENGTH, context_length=LENGTH)
    assert len(written) == 2 * LENGTH


def test_layers_with_equal_masks_share_one_table() -> None:
    config = make_config("mask=pattern", "mask.pattern=[banded,causal,banded,prefix]", "size.n_layers=8")
    built = build(config, 11)
    assert built.mask_of_layer == [0, 1, 0, 2, 0, 1, 0, 2]
    assert not [buffer for buffer in built.buffers() if buffer.dtype is torch.bool]
    found = [built.mask_table(index) for index in range(3)]
    assert found[1] is None
    for index in (0, 2):
        assert torch.equal(found[index], masks.dense_mask(built.masks[index], 64))
        assert built.mask_table(index) is found[index]


def test_a_pattern_of_one_mask_equals_that_mask() -> None:
    tokens = torch.randint(11, (1, LENGTH))
    plain, pattern = (build(small(f"mask=banded_causal mask.window=3 {more}"), 11) for more in ("", "mask.pattern=S"))
    randomize_weights(plain)
    randomize_weights(pattern)
    assert torch.equal(plain(tokens), pattern(tokens))


def test_noncausal_warnings_name_the_first_pair() -> None:
    assert masks.noncausal_warnings(make_config("mask=prefix")) == [
        "mask=prefix is not causal: position 0 sees position 1; the loss is not that of next-token prediction"
    ]
    assert masks.noncausal_warnings(make_config("mask.pattern=[causal,banded,strided,banded]")) == [
        "mask=banded (layers 1, 3) is not causal: position 0 sees position 1; "
        "the loss is not that of next-token prediction"
    ]
    for model in ("bigram", "ngram"):
        assert masks.noncausal_warnings(make_config("mask=banded", f"model={model}")) == []
    for overrides in CAUSAL:
        assert masks.noncausal_warnings(small(overrides)) == []


def test_noncausal_warnings_include_masks_of_plugins() -> None:
    MASKS.register("one_future_pair")(one_future_pair)
    config = make_config()
    config.mask = MaskConfig(name="one_future_pair")
    assert "position 3 sees position 4;" in masks.noncausal_warnings(config)[0]


def one_future_pair(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor:
    return (key <= query) | ((query == 3) & (key == 4))


def test_same_document_compares_positions_of_each_row() -> None:
    found = masks.same_document(torch.tensor([[4, 4, 5], [0, 2, 2]]))
    assert found.tolist() == [
        [[True, True, False], [True, True, False], [False, False, True]],
        [[True, False, False], [False, True, True], [False, True, True]],
    ]


def test_describe_mask_mentions_within_documents() -> None:
    assert masks.describe_mask(DocumentConfig()) == "document, within documents"
    assert masks.describe_mask(BandedConfig(window=3, within_documents=True)) == "banded, window 3, within documents"
    assert masks.describe_mask(CausalConfig()) == "causal"


def test_dense_mask_rejects_a_position_without_keys_in_its_document() -> None:
    MASKS.register("previous_only")(previous_only)
    assert masks.dense_mask(MaskConfig(name="previous_only"), 4).any(dim=1).all()
    with pytest.raises(SettingsError, match="lets position 1 see nothing if a document begins there"):
        masks.dense_mask(MaskConfig(name="previous_only", within_documents=True), 4)


def previous_only(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor:
    return key == (query - 1).clamp(min=0)


def test_describe_layers() -> None:
    assert masks.describe_layers([0, 1], 2) == "every layer"
    assert masks.describe_layers([1], 2) == "layer 1"
    assert masks.describe_layers([0, 2], 4) == "layers 0, 2"
    assert masks.describe_layers(range(0, 24, 2), 24) == "layers 0, 2, 4, ... (12 of 24)"


def test_dense_mask_rejects_a_position_without_keys() -> None:
    MASKS.register("strictly_earlier")(strictly_earlier)
    with pytest.raises(SettingsError, match="lets position 0 see nothing"):
        masks.dense_mask(MaskConfig(name="strictly_earlier"), 4)


def strictly_earlier(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor:
    return key < query


def test_dense_mask_rejects_a_position_without_earlier_keys() -> None:
    MASKS.register("mirrored")(mirrored)
    with pytest.raises(SettingsError, match="lets position 0 see later positions only"):
        masks.dense_mask(MaskConfig(name="mirrored"), 4)


def mirrored(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor:
    return query + key == 3


@pytest.mark.parametrize("wrong", ["number", "shape", "nothing"])
def test_dense_mask_rejects_other_return_values(wrong: str) -> None:
    MASKS.register("not_a_mask")(not_a_mask)
    config = MaskConfig(name="not_a_mask")
    config.pattern = wrong
    with pytest.raises(SettingsError, match="did not return a bool tensor for 4 x 4 positions"):
        masks.dense_mask(config, 4)


def not_a_mask(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor | None:
    return {"number": query - key, "shape": torch.ones(3, 3, dtype=torch.bool), "nothing": None}[config.pattern]
