import pytest

from nanolm.config.checks import check
from nanolm.config.mask import (
    BandedCausalConfig,
    BlockLocalConfig,
    CausalConfig,
    DocumentConfig,
    MaskConfig,
    StridedConfig,
    layer_masks,
    layers_by_mask,
    reads_documents,
)
from tests.helpers import make_config


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("mask=causal",), [CausalConfig()] * 4),
        (("mask.pattern=[causal,banded_causal]",), [CausalConfig(), BandedCausalConfig(window=16)] * 2),
        (("mask=banded_causal", "mask.pattern=[causal]", "mask.window=5"), [CausalConfig()] * 4),
        (
            ("mask=banded_causal", "mask.pattern=SSSL", "mask.window=5"),
            [BandedCausalConfig(window=5)] * 3 + [CausalConfig()],
        ),
        (("mask=causal", "mask.pattern=LS"), [CausalConfig(), BandedCausalConfig()] * 2),
        (
            ("mask=pattern", "mask.pattern=[strided,block_local]", "mask.stride=3", "mask.block_size=4"),
            [StridedConfig(stride=3), BlockLocalConfig(block_size=4)] * 2,
        ),
        (("mask=document",), [DocumentConfig()] * 4),
        (("mask.pattern=[document,causal]",), [DocumentConfig(), CausalConfig()] * 2),
        (("mask=document", "mask.pattern=[document,causal]"), [DocumentConfig(), CausalConfig()] * 2),
        (
            ("mask.within_documents=true", "mask.pattern=LS"),
            [CausalConfig(within_documents=True), BandedCausalConfig(within_documents=True)] * 2,
        ),
        (
            ("mask=pattern", "mask.within_documents=true", "mask.pattern=[document,strided]"),
            [DocumentConfig(), StridedConfig(within_documents=True)] * 2,
        ),
    ],
)
def test_pattern_masks_repeat_over_the_layers(overrides: tuple[str, ...], expected: list[MaskConfig]) -> None:
    config = make_config(*overrides)
    assert check(config) == []
    assert layer_masks(config) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mask=causal", False),
        ("mask=document", True),
        ("mask=none mask.within_documents=true", True),
        ("mask.pattern=[causal,document]", True),
        ("mask=document mask.pattern=LL", False),
        ("mask=document model=bigram", False),
        ("mask=document model=gpt2", True),
    ],
)
def test_model_reads_documents_if_a_mask_uses_them(line: str, expected: bool) -> None:
    assert reads_documents(make_config(*line.split())) is expected


def test_layers_are_grouped_by_mask() -> None:
    config = make_config("mask.pattern=[causal,banded_causal,causal,none]")
    assert [(mask.name, layers) for mask, layers in layers_by_mask(config)] == [
        ("causal", [0, 2]),
        ("banded_causal", [1]),
        ("none", [3]),
    ]
