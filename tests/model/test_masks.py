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

# Each mask on a line of settings, whether it sees the future, and one of its rows by hand: what position 7 of 13 sees.
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
CAUSAL = [line for line, (sees_future, _) in BY_HAND.items() if not sees_future] + list(PATTERNS)
LEAKING = [line for line, (sees_future, _) in BY_HAND.items() if sees_future]


def small(line: str) -> Config:
    return make_config(*line.split(), f"size.context_length={LENGTH}", "size.n_layers=2", "size.d_model=16")


@pytest.mark.parametrize("line", BY_HAND)
def test_a_row_is_the_one_written_by_hand(line: str) -> None:
    sees_future, expected = BY_HAND[line]
    visible = masks.dense_mask(small(line).mask, LENGTH)
    assert visible[7].nonzero().flatten().tolist() == expected
    assert (masks.first_future_pair(visible) is not None) == sees_future


# From the definitions, a pair at a time.
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
def test_a_mask_is_its_definition(config: MaskConfig, sees: Callable[[int, int], bool], length: int) -> None:
    expected = [[sees(query, key) for key in range(length)] for query in range(length)]
    assert masks.dense_mask(config, length).tolist() == expected


def test_every_mask_has_a_definition_here() -> None:
    own = {name for name in MASKS if MASKS[name].__module__.startswith("nanolm.")}
    assert own == {config.name for config, _ in DEFINITIONS}
    assert own == {small(line).mask.name for line in BY_HAND}


def reach(line: str) -> torch.Tensor:
    """Row t, column s: how far the embedding of token s moves the logits at t, in a model of two layers."""
    built = build(small(line), 11)
    randomize_weights(built)
    embedded: list[torch.Tensor] = []
    built.token_embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))  # type: ignore[union-attr,operator]
    logits = built(torch.randint(11, (1, LENGTH)))
    rows = []
    for t in range(LENGTH):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), embedded[0], retain_graph=True)
        rows.append(gradient[0].abs().sum(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("line", [*BY_HAND, *PATTERNS])
def test_a_model_sees_what_its_masks_let_through_and_nothing_else(line: str) -> None:
    first, second = (masks.dense_mask(mask, LENGTH).long() for mask in layer_masks(small(line)))
    reached = reach(line) > 0
    assert torch.equal(reached, second @ first > 0)
    assert bool(reached.triu(1).any()) == (line in LEAKING)


@pytest.mark.parametrize("line", CAUSAL)
def test_a_shorter_input_gives_the_same_logits(line: str) -> None:
    built = build(small(line), 11).eval()
    randomize_weights(built)
    tokens = torch.randint(11, (2, LENGTH))
    for length in (1, 6):
        torch.testing.assert_close(built(tokens[:, :length]), built(tokens)[:, :length], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("line", [*BY_HAND, *PATTERNS])
def test_every_mask_writes(line: str) -> None:
    built = build(small(line), 11)
    randomize_weights(built)
    for length in range(1, LENGTH + 1):
        assert built(torch.randint(11, (1, length))).isfinite().all()
    written = sample(built, torch.tensor([3]), 2 * LENGTH, context_length=LENGTH)
    assert len(written) == 2 * LENGTH


def test_layers_with_the_same_mask_share_its_table() -> None:
    config = make_config("mask=pattern", "mask.pattern=[banded,causal,banded,prefix]", "size.n_layers=8")
    built = build(config, 11)
    assert built.mask_of_layer == [0, 1, 0, 2, 0, 1, 0, 2]
    buffers = {name: buffer.shape for name, buffer in built.named_buffers() if buffer.dtype is torch.bool}
    assert buffers == {"visible_MxTxT": (2, 64, 64)}
    assert "visible_MxTxT" not in built.state_dict()


def test_causal_needs_no_table() -> None:
    assert build(make_config("mask.pattern=LL"), 11).visible_MxTxT is None


def test_a_pattern_of_one_mask_is_that_mask() -> None:
    tokens = torch.randint(11, (1, LENGTH))
    plain, pattern = (build(small(f"mask=banded_causal mask.window=3 {more}"), 11) for more in ("", "mask.pattern=S"))
    randomize_weights(plain)
    randomize_weights(pattern)
    assert torch.equal(plain(tokens), pattern(tokens))


def test_the_first_leak_is_named() -> None:
    assert masks.noncausal_warnings(make_config("mask=prefix")) == [
        "mask=prefix sees the future: position 0 sees 1; its loss is no longer that of next-token prediction"
    ]
    assert masks.noncausal_warnings(make_config("mask.pattern=[causal,banded,strided,banded]")) == [
        "mask=banded, of layers 1, 3, sees the future: position 0 sees 1; "
        "its loss is no longer that of next-token prediction"
    ]
    for model in ("bigram", "ngram"):
        assert masks.noncausal_warnings(make_config("mask=banded", f"model={model}")) == []
    for line in CAUSAL:
        assert masks.noncausal_warnings(small(line)) == []


def test_a_leak_of_ones_own_is_found() -> None:
    MASKS.register("peeks_late")(peeks_late)
    config = make_config()
    config.mask = MaskConfig(name="peeks_late")
    assert "position 3 sees 4;" in masks.noncausal_warnings(config)[0]


def peeks_late(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor:
    return (key <= query) | ((query == 3) & (key == 4))


def test_positions_of_one_document_are_found_row_by_row() -> None:
    found = masks.same_document(torch.tensor([[4, 4, 5], [0, 2, 2]]))
    assert found.tolist() == [
        [[True, True, False], [True, True, False], [False, False, True]],
        [[True, False, False], [False, True, True], [False, True, True]],
    ]


def test_a_mask_by_name_says_that_it_keeps_within_documents() -> None:
    assert masks.describe_mask(DocumentConfig()) == "document, within documents"
    assert masks.describe_mask(BandedConfig(window=3, within_documents=True)) == "banded, window 3, within documents"
    assert masks.describe_mask(CausalConfig()) == "causal"


def test_a_position_that_sees_nothing_where_its_document_begins_is_refused() -> None:
    MASKS.register("the_one_before")(the_one_before)
    assert masks.dense_mask(MaskConfig(name="the_one_before"), 4).any(dim=1).all()
    with pytest.raises(SettingsError, match="leaves position 1 with nothing to see where a document begins there"):
        masks.dense_mask(MaskConfig(name="the_one_before", within_documents=True), 4)


def the_one_before(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor:
    return key == (query - 1).clamp(min=0)


def test_layers_in_words() -> None:
    assert masks.describe_layers([0, 1], 2) == "every layer"
    assert masks.describe_layers([1], 2) == "layer 1"
    assert masks.describe_layers([0, 2], 4) == "layers 0, 2"
    assert masks.describe_layers(range(0, 24, 2), 24) == "layers 0, 2, 4, ... (12 of 24)"


def test_a_row_that_sees_nothing_is_refused() -> None:
    MASKS.register("only_before")(only_before)
    with pytest.raises(SettingsError, match="leaves position 0 with nothing to see"):
        masks.dense_mask(MaskConfig(name="only_before"), 4)


def only_before(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor:
    return key < query


def test_a_row_that_a_shorter_text_leaves_blind_is_refused() -> None:
    MASKS.register("swaps")(swaps)
    with pytest.raises(SettingsError, match="shows position 0 only what comes after it"):
        masks.dense_mask(MaskConfig(name="swaps"), 4)


def swaps(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor:
    return query + key == 3


@pytest.mark.parametrize("wrong", ["number", "shape", "nothing"])
def test_what_is_no_mask_is_refused(wrong: str) -> None:
    MASKS.register("no_mask")(no_mask)
    config = MaskConfig(name="no_mask")
    config.pattern = wrong
    with pytest.raises(SettingsError, match="returned no truth values for 4 x 4 positions"):
        masks.dense_mask(config, 4)


def no_mask(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor | None:
    return {"number": query - key, "shape": torch.ones(3, 3, dtype=torch.bool), "nothing": None}[config.pattern]
