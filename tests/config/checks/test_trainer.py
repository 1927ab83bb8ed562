import pytest

from tests.helpers import mistakes


@pytest.mark.parametrize("device", ["'cuda:²'", "CPU", "'cuda:99999'", "''", "cpu:0"])
def test_unknown_device_is_refused(device: str) -> None:
    quoted = device if device[0] == "'" else f"'{device}'"
    assert mistakes(f"trainer.device={device}") == [f"trainer.device is {quoted}"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ("trainer.attention_backend=flex", "size.n_heads=16"),
            [
                "trainer.attention_backend=flex needs heads of width 16 or more, but size.d_model (128) and "
                "size.n_heads (16) give a width of 8 (values 8)"
            ],
        ),
        (
            ("trainer.attention_backend=flex", "trainer.device=cpu", "model.dropout=0.1"),
            [
                "trainer.attention_backend=flex does not support attention dropout",
                "trainer.attention_backend=flex has no backward pass on a CPU",
            ],
        ),
        (
            ("trainer.attention_backend=sdpa", "model.attention=uniform", "model.positions=none"),
            ["trainer.attention_backend is sdpa, but uniform attention has only one implementation"],
        ),
        (
            ("trainer.attention_backend=blocked", "mask=banded_causal", "mask.pattern=SL"),
            [
                "trainer.attention_backend=blocked needs a mask with a bounded reach, "
                "but mask=causal in layer 1 has none"
            ],
        ),
    ],
)
def test_unsuitable_attention_backend_is_refused(overrides: tuple[str, ...], expected: list[str]) -> None:
    assert mistakes(*overrides) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.attention_backend=blocked", "mask=banded_causal"),
        ("trainer.attention_backend=flex", "model.dropout=0.1", "model.attention_dropout=0"),
    ],
)
def test_suitable_attention_backend_is_accepted(overrides: tuple[str, ...]) -> None:
    assert mistakes(*overrides) == []


def test_clipping_by_norm_and_value_is_refused() -> None:
    assert mistakes("trainer.clip_value=0.5") == ["trainer.clip_norm (1.0) and trainer.clip_value (0.5) are both set"]
    assert mistakes("trainer.clip_value=0.5", "trainer.clip_norm=null") == []
    assert mistakes("trainer.clip_norm=null") == []
