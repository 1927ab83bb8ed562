"""How fast the tokenizers encode, against what they are measured by, on the source of Python's standard library.

Ours and the reference run in turn on the same text in one thread; the figures are of the fastest runs.
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
    """The top-level modules of the standard library and its packages, in the order of their paths."""
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
    """Measures.

    Args:
        gpt2: a folder with encoder.json and vocab.bpe; without it they come from the cache or the network.
        megabytes: how much text, at least.
        rounds: how often each is timed, ours and the reference in turn.

    Returns:
        Rows of (name, ours in MB/s, the reference in MB/s or None, what to make of it).
    """
    text = stdlib_source(megabytes)
    size = len(text.encode()) / 1e6
    found: list[Row] = []
    beside = text.replace("a", "\N{CYRILLIC SMALL LETTER A}")
    wide = len(beside.encode()) / 1e6
    for name, config, sample, bulk in (
        ("char", CharConfig(), text, size),
        ("char, a text of ASCII and Cyrillic", CharConfig(), beside, wide),
        ("byte", ByteConfig(), text, size),
    ):
        tokenizer = tokenizers.fit(config, [sample])
        (ours,) = _paired(rounds, lambda encode=tokenizer.encode, sample=sample: encode(sample))
        found.append((name, bulk / ours, None, f"{bulk / ours:,.0f} MB/s"))

    try:
        mine = tokenizers.fit(Gpt2Config(path=gpt2 or _folder_at_hand()), [])
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


def _folder_at_hand() -> str | None:
    """The test data's copy of encoder.json and vocab.bpe, where there is one."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("NANOLM_TEST_DATA", beside)) / "gpt2"
    return str(folder) if folder.is_dir() else None


def _paired(rounds: int, *runs: Callable[[], object]) -> list[float]:
    """The fewest seconds that each of several functions took, called in turn."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for number, run in enumerate(runs):
            began = time.perf_counter()
            run()
            best[number] = min(best[number], time.perf_counter() - began)
    return best


def _tiktoken(tokenizer: tokenizers.Tokenizer) -> tiktoken.Encoding:
    """tiktoken's own gpt2, from the same ranks."""
    from tiktoken_ext.openai_public import r50k_pat_str

    special = tokenizer.special_tokens
    ranks = {
        tokenizer._shown[number]: number for number in range(tokenizer.vocab_size) if number not in special.values()
    }
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpt2", help="a folder with encoder.json and vocab.bpe (default: the cache, or the network)")
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    table = Table(
        "encode", "ours MB/s", "reference MB/s", "", title=f"{arguments.megabytes:g} MB of Python, one thread"
    )
    for name, ours, reference, remark in rows(arguments.gpt2, arguments.megabytes, arguments.rounds):
        table.add_row(name, f"{ours:,.1f}", "" if reference is None else f"{reference:,.1f}", remark)
    rich.print(table)


if __name__ == "__main__":
    main()
