"""What general compressors make of a text: reference lines that know nothing of language."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import json
import lzma
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from nanolm.data.corpus import Corpus, split_settings
from nanolm.data.download import cache_folder
from nanolm.files import write_durably
from nanolm.json_text import dump_json

# xz reads about a megabyte a second, and everything twice: a longer text would keep a run waiting at its start.
COMPRESSIBLE_CHARACTERS = 2**23

# Bytes. Headers, padding (of xz to multiples of four) and the tables of bz2 change a size by up to about this much.
SMALLEST_DIFFERENCE = 32


def _xz(text: bytes) -> bytes:
    # A dictionary no longer than the text gives the same bytes, and takes megabytes where the preset takes 674.
    preset = 9 | lzma.PRESET_EXTREME
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": max(len(text), 4096)}]
    return lzma.compress(text, format=lzma.FORMAT_XZ, filters=filters)


# Each at its best level.
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda text: gzip.compress(text, 9, mtime=0),
    "bz2": lambda text: bz2.compress(text, 9),
    "xz": _xz,
}


def bits_per_byte(train: bytes, heldout: bytes) -> dict[str, float]:
    """Bits that each compressor needs for a byte of `heldout` once it has seen `train`.

    That is len(compress(train + heldout)) - len(compress(train)), in bits, over len(heldout). gzip looks back 32 KiB
    and bz2 900 kB at most: the rest of a longer training text is of no use to them.

    The difference of two sizes says nothing where it is as small as the container's own changes of size, as it is for
    a very short or very repetitive `heldout`: it may even be negative.

    Returns:
        The figure by compressor, without the compressors whose difference is below SMALLEST_DIFFERENCE.
    """
    texts = [train, train + heldout]
    # Compressors let go of the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        compressed = {name: [pool.submit(to, text) for text in texts] for name, to in COMPRESSORS.items()}
    sizes = {name: [len(one.result()) for one in both] for name, both in compressed.items()}
    differences = {name: after - before for name, (before, after) in sizes.items()}
    return {name: 8 * size / len(heldout) for name, size in differences.items() if size >= SMALLEST_DIFFERENCE}


def validation_bits_per_byte(corpus: Corpus) -> dict[str, float]:
    """The same for the validation text given the training text, worked out once for each text and kept in the cache.

    Nothing for a text of more than COMPRESSIBLE_CHARACTERS.
    """
    if sum(corpus.n_characters.values()) > COMPRESSIBLE_CHARACTERS:
        return {}
    about = {
        "corpus": corpus.fingerprint,
        "splits": split_settings(corpus.config),
        "compressors": list(COMPRESSORS),
        "smallest_difference": SMALLEST_DIFFERENCE,
    }
    key = hashlib.sha256(dump_json(about, sort_keys=True).encode()).hexdigest()[:20]
    path = cache_folder() / "compressors" / f"{corpus.config.name}-{key}.json"
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        return {name: float(bits) for name, bits in json.loads(path.read_bytes()).items() if name in COMPRESSORS}
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for piece in corpus.pieces():
        if piece.split in splits:
            splits[piece.split].append(piece.text)
    train, heldout = ("".join(texts).encode() for texts in splits.values())
    lines = bits_per_byte(train, heldout)
    # What cannot be kept is worked out again.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, dump_json(lines).encode())
    return lines
