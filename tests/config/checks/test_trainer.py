from tests.helpers import mistakes


def test_clipping_by_norm_and_value_is_refused() -> None:
    assert mistakes("trainer.clip_value=0.5") == ["trainer.clip_norm (1.0) and trainer.clip_value (0.5) are both set"]
    assert mistakes("trainer.clip_value=0.5", "trainer.clip_norm=null") == []
    assert mistakes("trainer.clip_norm=null") == []
