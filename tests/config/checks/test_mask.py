import pytest

from nanolm.config.checks import check
from tests.helpers import make_config, mistakes


def test_document_masks_need_whole_documents() -> None:
    by_line = "dataset.split_by=line"
    for mask in ("mask=document", "mask.within_documents=true", "mask.pattern=[causal,document]"):
        assert mistakes(mask, by_line) == [
            "mask.within_documents needs whole documents, but dataset.split_by=line splits them"
        ]
        assert mistakes(mask, by_line, "trainer.sampling=lines") == []
        assert mistakes(mask, by_line, "model=bigram") == []
    assert mistakes("mask=document", "mask.within_documents=false") == [
        "mask.within_documents is false, but mask=document is causal within documents"
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("mask=banded", "mask.window=0"), ["mask.window is 0, and must be at least 1"]),
        (("mask=banded_causal", "mask.window=65"), ["mask.window (65) is larger than size.context_length (64)"]),
        (("mask=prefix", "mask.prefix_length=65"), ["mask.prefix_length (65) is larger than size.context_length (64)"]),
        (("mask=strided", "mask.stride=0"), ["mask.stride is 0, and must be at least 1"]),
        (("mask=block_local", "mask.block_size=65"), ["mask.block_size (65) is larger than size.context_length (64)"]),
        (
            ("mask.pattern=SL", "size.context_length=8"),
            ["mask.window (16, the default of banded_causal) is larger than size.context_length (8)"],
        ),
        (("mask=pattern", "mask.pattern=LL", "mask.window=65"), []),
        (
            ("mask=pattern", "mask.pattern=LS", "mask.window=65"),
            ["mask.window (65) is larger than size.context_length (64)"],
        ),
        (("mask=pattern",), ["mask.pattern is None"]),
        (("mask.pattern=[]",), ["mask.pattern is []"]),
        (("mask.pattern=''",), ["mask.pattern is ''"]),
        (("mask.pattern=5",), ["mask.pattern is 5"]),
        (("mask.pattern=[[causal],2,3,4]",), [f"there is no mask {name}" for name in ("['causal']", "2", "3", "4")]),
        (("mask.pattern=[pattern]",), ["there is no mask 'pattern'"]),
        (("mask.pattern=SXLY",), ["mask.pattern is 'SXLY', but there is no mask for X, Y"]),
        (
            ("mask.pattern=[causal,bandd,casual]",),
            [
                "there is no mask 'bandd'",
                "there is no mask 'casual'",
                "size.n_layers (4) is not a multiple of the 3 masks in mask.pattern",
            ],
        ),
        (
            ("mask.pattern=SSL", "size.n_heads=3", "trainer.device=gpu"),
            [
                "size.d_model (128) is not divisible by size.n_heads (3)",
                "size.n_layers (4) is not a multiple of the 3 masks in mask.pattern",
                "trainer.device is 'gpu'",
            ],
        ),
    ],
)
def test_mask_mistakes_are_refused(overrides: tuple[str, ...], expected: list[str]) -> None:
    assert mistakes(*overrides) == expected


def test_mistyped_mask_in_a_pattern_has_a_hint() -> None:
    (problem,) = check(make_config("mask.pattern=[bandd]"))
    assert "did you mean banded?" in problem.hint
    (problem,) = check(make_config("mask.pattern=SSS"))
    assert problem.hint == "the number of masks must divide the number of layers: 1, 2, 4"
