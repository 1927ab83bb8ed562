import numpy as np

from nanolm.data import tokenizers
from nanolm.data.tokenizers import CharTokenizer


def test_smallest_dtype_grows_with_vocabulary() -> None:
    assert [tokenizers.smallest_dtype(n).name for n in (256, 257, 65_536, 65_537)] == [
        "uint8",
        "uint16",
        "uint16",
        "uint32",
    ]
    wide = CharTokenizer([chr(point) for point in range(0xE000, 0xE000 + 300)])
    assert wide.encode(chr(0xE000 + 299)).tolist() == [299]
    assert wide.encode("").dtype == np.uint16
