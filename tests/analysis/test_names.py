from nanolm.analysis.names import short_keys


def test_short_keys_are_unique() -> None:
    keys = ["optimizer.lr", "model.name", "mask.name", "seed", "size.d_model"]
    assert list(short_keys(keys).values()) == ["lr", "model.name", "mask.name", "seed", "d_model"]
