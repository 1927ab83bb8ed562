"""Baselines by general-purpose compressors: bits per byte of gzip, bz2 and xz on the same text."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from nanolm.data.corpus import Corpus, split_settings
from nanolm.data.download import cache_folder
from nanolm.data.tokens.keys import digest
from nanolm.files import write_durably
from nanolm.json_text import dump_json

# Longer texts are not compressed: xz reads about a megabyte per second, and the training text twice.
MAX_CHARACTERS = 2**23

# In bytes. Headers, padding (of xz to multiples of four) and the tables of bz2 change a size by up to about this.
SMALLEST_DIFFERENCE = 32


def _xz(text: bytes) -> bytes:
    # A dictionary of the size of the text gives the same bytes as the preset, which takes 674 MB of memory.
    preset = 9 | lzma.PRESET_EXTREME
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": max(len(text), 4096)}]
    return lzma.compress(text, format=lzma.FORMAT_XZ, filters=filters)


# Each at its highest level.
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda text: gzip.compress(text, 9, mtime=0),
    "bz2": lambda text: bz2.compress(text, 9),
    "xz": _xz,
}


def bits_per_byte(train: bytes, heldout: bytes) -> dict[str, float]:
    """Return the bits per byte of held-out text that each compressor needs after the training text.

    That is 8 (len(compress(train + heldout)) - len(compress(train))) / len(heldout). gzip looks back at most 32 KiB,
    and bz2 900 kB: the rest of a longer training text does not help them.

    For a very short or repetitive held-out text the difference is within the overhead of the container, and may even be
    negative.

    Returns:
        Bits per byte by compressor, without compressors whose difference is below SMALLEST_DIFFERENCE.
    """
    texts = [train, train + heldout]
    # Compressors release the GIL.
    with ThreadPoolExecutor() as pool:
        compressed = {name: [pool.submit(to, text) for text in texts] for name, to in COMPRESSORS.items()}
    differences = {name: len(after.result()) - len(before.result()) for name, (before, after) in compressed.items()}
    return {name: 8 * size / len(heldout) for name, size in differences.items() if size >= SMALLEST_DIFFERENCE}


def validation_bits_per_byte(corpus: Corpus) -> dict[str, float]:
    """Return the bits per byte of a corpus's validation text after its training text, from the cache if possible.

    Of a dataset with prompts, only the responses are compressed: their bits per byte are without the prompts.

    Computed when a run starts, since its text may be gone later, and stored in summary.json: a comparison of runs reads
    nothing but their directories.

    Returns:
        As `bits_per_byte`; empty for a text of more than MAX_CHARACTERS.
    """
    if sum(corpus.n_characters.values()) > MAX_CHARACTERS:
        return {}
    key = {
        "corpus": corpus.fingerprint,
        "splits": split_settings(corpus.config),
        "compressors": list(COMPRESSORS),
        "smallest_difference": SMALLEST_DIFFERENCE,
    }
    path = cache_folder() / "compressors" / f"{corpus.config.name}-{digest(key)}.json"
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        return {name: float(bits) for name, bits in json.loads(path.read_bytes()).items() if name in COMPRESSORS}
    train, heldout = ("".join(corpus.scored_texts(split)).encode() for split in ("train", "val"))
    found = bits_per_byte(train, heldout)
    # A result that cannot be cached is computed again next time.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, dump_json(found).encode())
    return found
