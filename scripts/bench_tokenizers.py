"""Measure the encoding speed of tokenizers, compared with tiktoken, on the source of Python's standard library.

Both run alternately on the same text in one thread; the fastest runs count.
"""

from __future__ import annotations

import argparse
import math
import os
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import rich
import tiktoken
from rich.table import Table

from nanolm.config.tokenizer import ByteConfig, CharConfig, Gpt2Config
from nanolm.data import tokenizers
from nanolm.errors import DataError

Row = tuple[str, float, float | None, str]


def stdlib_source(megabytes: float) -> str:
    """Read the modules of the standard library, sorted by path, up to a size."""
    root, parts, size = Path(sysconfig.get_path("stdlib")), [], 0
    for path in sorted(root.rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        content = path.read_bytes()
        try:
            parts.append(content.decode("utf-8"))
        except UnicodeDecodeError:
            continue
        size += len(content)
        if size >= megabytes * 1e6:
            break
    return "".join(parts)


def rows(gpt2: str | None = None, megabytes: float = 8, rounds: int = 5) -> list[Row]:
    """Measure all tokenizers.

    Args:
        gpt2: folder with encoder.json and vocab.bpe; None: the cache or the network.
        megabytes: least size of the text.
        rounds: number of timed runs of each.

    Returns:
        Rows of (name, nanolm in MB/s, reference in MB/s or None, remark).
    """
    text = stdlib_source(megabytes)
    size = len(text.encode()) / 1e6
    found: list[Row] = []
    mixed = text.replace("a", "\N{CYRILLIC SMALL LETTER A}")
    mixed_size = len(mixed.encode()) / 1e6
    for name, config, sample, sample_size in (
        ("char", CharConfig(), text, size),
        ("char, a text of ASCII and Cyrillic", CharConfig(), mixed, mixed_size),
        ("byte", ByteConfig(), text, size),
    ):
        tokenizer = tokenizers.fit(config, [sample])
        (ours,) = _paired(rounds, lambda encode=tokenizer.encode, sample=sample: encode(sample))
        found.append((name, sample_size / ours, None, f"{sample_size / ours:,.0f} MB/s"))

    try:
        mine = tokenizers.fit(Gpt2Config(path=gpt2 or _test_data_folder()), [])
    except DataError as error:
        return [*found, ("gpt2", math.nan, None, f"not measured: {error.found}")]
    reference = _tiktoken(mine)
    for name, encode in (
        ("gpt2 against tiktoken encode_ordinary", reference.encode_ordinary),
        ("gpt2 against tiktoken encode_to_numpy", lambda t: reference.encode_to_numpy(t, disallowed_special=())),
    ):
        ours, theirs = _paired(rounds, lambda: mine.encode(text), lambda encode=encode: encode(text))
        found.append((name, size / ours, size / theirs, f"{theirs / ours:.2f} times as fast"))
    return found


def _test_data_folder() -> str | None:
    """Return the folder of encoder.json and vocab.bpe in the test data; None if it does not exist."""
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("NANOLM_TEST_DATA", default)) / "gpt2"
    return str(folder) if folder.is_dir() else None


def _paired(rounds: int, *runs: Callable[[], object]) -> list[float]:
    """Return the fewest seconds of each function, called alternately."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for number, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


def _tiktoken(tokenizer: tokenizers.Tokenizer) -> tiktoken.Encoding:
    """Build tiktoken's gpt2 encoding from the same ranks."""
    from tiktoken_ext.openai_public import r50k_pat_str

    special = tokenizer.special_tokens
    ranks = {
        tokenizer._shown[number]: number for number in range(tokenizer.vocab_size) if number not in special.values()
    }
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpt2", help="folder with encoder.json and vocab.bpe (default: the cache or the network)")
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    table = Table(
        "encode", "nanolm MB/s", "reference MB/s", "", title=f"{arguments.megabytes:g} MB of Python, one thread"
    )
    for name, ours, reference, remark in rows(arguments.gpt2, arguments.megabytes, arguments.rounds):
        table.add_row(name, f"{ours:,.1f}", "" if reference is None else f"{reference:,.1f}", remark)
    rich.print(table)


if __name__ == "__main__":
    main()
