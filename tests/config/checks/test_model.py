import pytest

from tests.helpers import mistakes


def test_rotary_needs_an_even_head_width() -> None:
    assert "rotary" in mistakes("size.d_model=12", "size.n_heads=4")[0]
    assert mistakes("size.d_model=12", "size.n_heads=4", "model=gpt2") == []


def test_bigram_ignores_the_number_of_heads() -> None:
    assert mistakes("model=bigram", "size.n_heads=3") == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("size.d_key=7",), ["model.positions=rotary needs an even head width, but queries and keys have width 7"]),
        (
            ("model.output_projection=false", "size.d_value=20", "model.tie_embeddings=true"),
            [
                "without an output projection, 4 heads with values of width 20 give a residual stream of width 80, "
                "but size.d_model is 128",
                "a head tied to the token embedding has width 128, but the residual stream has width 80",
            ],
        ),
        (
            ("model.attention=uniform", "model.positions=alibi", "model.norm=none", "model.final_norm=true"),
            [
                "model.positions=alibi changes attention scores, but uniform attention has none",
                "model.final_norm is true, but model.norm is none",
            ],
        ),
        (
            ("model.residual=false",),
            ["model.initialization=zero_projections without residual connections gives zero outputs and gradients"],
        ),
        (
            ("model.logit_softcap=0", "size.d_ff=0", "model.attention_dropout=1"),
            [
                "model.logit_softcap is 0.0, and must be more than 0",
                "model.attention_dropout is 1.0, and must be less than 1",
                "size.d_ff is 0, and must be at least 1",
            ],
        ),
    ],
)
def test_incompatible_components_are_refused(overrides: tuple[str, ...], expected: list[str]) -> None:
    assert mistakes(*overrides) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ("size.n_heads=3", "size.d_key=8", "size.d_value=8"),
        ("size.n_heads=3", "model.attention=uniform", "model.positions=none"),
        ("size.n_layers=0",),
    ],
)
def test_compatible_components_are_accepted(overrides: tuple[str, ...]) -> None:
    assert mistakes(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("model.order=0",), ["model.order is 0, and must be at least 1"]),
        (
            ("model.order=6", "model.add_k=0"),
            ["model.order is 6, and must be at most 5", "model.add_k is 0.0, and must be more than 0"],
        ),
        (("model.add_k=-1",), ["model.add_k is -1.0, and must be more than 0"]),
        (("model.add_k=inf",), ["model.add_k is inf, and must be a finite number"]),
        (("model.order=4", "size.context_length=3"), []),
        (
            ("model.order=5", "size.context_length=3"),
            ["model.order (5) needs a context of 4 tokens, but size.context_length is 3"],
        ),
        (("size.n_heads=3",), []),
    ],
)
def test_ngram_settings_have_bounds(overrides: tuple[str, ...], expected: list[str]) -> None:
    assert mistakes("model=ngram", *overrides) == expected
