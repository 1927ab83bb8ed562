import dataclasses

from tests.helpers import make_config


def test_sizes_tiny_and_small_have_their_values() -> None:
    tiny, small = (dataclasses.astuple(make_config(f"size={name}").size) for name in ("tiny", "small"))
    assert (tiny, small) == ((4, 4, 128, 64, None, None, None, None), (6, 6, 384, 256, None, None, None, None))
