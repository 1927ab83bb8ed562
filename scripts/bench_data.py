"""Measure the time to draw batches, compared with nanoGPT's method, and the memory of tokenizing a large text.

    python scripts/bench_data.py [--megabytes 1000] [--json]

Expected: a batch takes at most a third of the time of nanoGPT's (torch.stack of slices of a memory map), both converted
to tensors; tokenizing takes less than 1 GB of memory per process, however large the text is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from nanolm.config.batch_schedule import Stage
from nanolm.config.dataset import PythonStdlibConfig
from nanolm.config.trainer import Sampling
from nanolm.data import corpus as corpora
from nanolm.data.batches import draw
from nanolm.data.tokens.stream import Rows, Stream

SHAPES = ((12, 64), (64, 256))
REPEATS = 15
# Largest time of a batch, relative to nanoGPT's.
MAX_RATIO = 1 / 3

TOKENIZE = """
import json, resource, sys, time
from nanolm.compose import compose_command
from nanolm.data import corpus as corpora
from nanolm.data.tokens import cache as token_cache

def peak(who):
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

if __name__ == "__main__":
    config = compose_command(["dataset=text", f"dataset.path='{sys.argv[1]}'", f"tokenizer={sys.argv[2]}"]).config
    start = time.perf_counter()
    corpus = corpora.load(config.dataset)
    loaded = time.perf_counter()
    streams = token_cache.tokenize(corpus, token_cache.fit_tokenizer(corpus, config), config)
    made = time.perf_counter()
    token_cache.tokenize(corpus, token_cache.fit_tokenizer(corpus, config), config)
    print(json.dumps({
        "tokens": sum(len(stream.tokens) for stream in streams.values()),
        "read_seconds": loaded - start,
        "tokenize_seconds": made - loaded,
        "reopen_seconds": time.perf_counter() - made,
        "peak_bytes": peak(resource.RUSAGE_SELF),
        "worker_peak_bytes": peak(resource.RUSAGE_CHILDREN),
    }))
"""


def rows(megabytes: int = 1000) -> list[dict[str, Any]]:
    """Return measurements with the keys what, value, unit, against, ratio (value / against) and allowed."""
    with tempfile.TemporaryDirectory() as folder:
        return [*_drawing(Path(folder)), *_memory(Path(folder), megabytes)]


def _drawing(folder: Path) -> list[dict[str, Any]]:
    n_tokens = 10_000_000
    np.random.default_rng(0).integers(0, 50_257, n_tokens).astype(np.uint16).tofile(folder / "tokens.bin")
    mapped = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
    # Documents of 1,000 tokens on average.
    document_starts = np.append(0, np.sort(np.random.default_rng(1).integers(0, n_tokens, n_tokens // 1000)))
    document_starts.astype(np.uint64).tofile(folder / "documents.bin")
    mapped_starts = np.asarray(np.memmap(folder / "documents.bin", dtype=np.uint64, mode="r"))
    row_starts = np.append(np.arange(0, n_tokens, 40), n_tokens).astype(np.uint64)
    found = []
    for batch_size, context_length in SHAPES:
        rows_of_40 = Rows(row_starts, 0, context_length)
        theirs = _nanogpt(mapped, batch_size, context_length)
        for kind, with_documents in (
            (Sampling.windows, False),
            (Sampling.windows, True),
            (Sampling.epochs, False),
            (Sampling.lines, False),
        ):
            stream = Stream(np.asarray(mapped), n_tokens, rows_of_40 if kind.in_rows else None, documents=mapped_starts)
            ours = _ours(kind, stream, batch_size, context_length, with_documents)
            mine, other = _paired(ours, theirs)
            found.append(
                {
                    "what": f"a batch of {kind.name}{' with documents' if with_documents else ''}, "
                    f"{batch_size} x {context_length}",
                    "value": mine * 1e6,
                    "unit": "us",
                    "against": other * 1e6,
                    "ratio": mine / other,
                    "allowed": MAX_RATIO if kind is Sampling.windows else None,
                }
            )
    return found


def _ours(
    kind: Sampling, stream: Stream, batch_size: int, context_length: int, with_documents: bool
) -> Callable[[int], object]:
    stage = Stage(0, 1, batch_size, context_length)

    def batch(step: int) -> object:
        drawn = draw(kind, stream, stage, seed=1, step=step, with_documents=with_documents)
        return [torch.from_numpy(tensor) for tensor in drawn if tensor is not None]

    return batch


def _nanogpt(mapped: np.memmap[Any, Any], batch_size: int, context_length: int) -> Callable[[int], object]:
    """Return a function like nanoGPT's get_batch, which stacks tensors of slices of the memory map."""

    def batch(step: int) -> object:
        starts = torch.randint(len(mapped) - context_length, (batch_size,))
        inputs = [torch.from_numpy(mapped[i : i + context_length].astype(np.int64)) for i in starts]
        targets = [torch.from_numpy(mapped[i + 1 : i + 1 + context_length].astype(np.int64)) for i in starts]
        return [torch.stack(inputs), torch.stack(targets)]

    return batch


def _paired(ours: Callable[[int], object], theirs: Callable[[int], object], n_steps: int = 200) -> tuple[float, float]:
    """Return the median seconds per call of each function, measured alternately."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(REPEATS):
        for batch, taken in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            for step in range(n_steps):
                batch(repeat * n_steps + step)
            taken.append((time.perf_counter() - start) / n_steps)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _memory(folder: Path, megabytes: int) -> list[dict[str, Any]]:
    content = "".join(corpora.load(PythonStdlibConfig()).documents("train")).encode()
    with (folder / "large.txt").open("wb") as file:
        while file.tell() < megabytes * 1e6:
            file.write(content)
    size = (folder / "large.txt").stat().st_size
    (folder / "make_stream.py").write_text(TOKENIZE)
    return [row for tokenizer in ("byte", "char", "bpe") for row in _encoding(folder, size, tokenizer)]


def _encoding(folder: Path, size: int, tokenizer: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, folder / "make_stream.py", folder / "large.txt", tokenizer],
        env={**os.environ, "NANOLM_CACHE": str(folder / f"cache-{tokenizer}")},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    result = json.loads(done.stdout)
    assert tokenizer != "byte" or result["tokens"] == size, f"{result['tokens']} tokens of {size} bytes"
    text = f"{size / 1e6:,.0f} MB of text, tokenizer={tokenizer}"
    found = [
        {
            "what": f"{text}: {what}",
            "value": result[name] / 1e6,
            "unit": "MB",
            "against": 1000.0,
            "ratio": result[name] / 1e9,
            "allowed": 1.0,
        }
        for what, name in (("peak memory", "peak_bytes"), ("peak memory of a worker", "worker_peak_bytes"))
    ]
    for what, name in (
        ("read and compute the fingerprint", "read_seconds"),
        ("tokenize and store", "tokenize_seconds"),
        ("open again and verify checksums", "reopen_seconds"),
    ):
        found.append({"what": f"{text}: {what}", "value": result[name], "unit": "s"})
    return found


def main() -> int:
    """Print the table; return 1 if a value exceeds its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=int, default=1000, metavar="N", help="size of the large text (1000)")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    options = parser.parse_args()
    found = rows(options.megabytes)
    if options.json:
        print(json.dumps(found))
    else:
        table = Table(title="data", title_justify="left")
        for name in ("", "here", "against", "ratio", "allowed"):
            table.add_column(name, justify="right" if name else "left")
        for row in found:
            table.add_row(
                row["what"],
                f"{row['value']:,.1f} {row['unit']}",
                f"{row['against']:,.1f} {row['unit']}" if "against" in row else "",
                f"{row['ratio']:.3f}" if "ratio" in row else "",
                f"{row['allowed']:.3f}" if row.get("allowed") else "",
            )
        Console().print(table)
    return int(any(row["ratio"] > row["allowed"] for row in found if row.get("allowed")))


if __name__ == "__main__":
    sys.exit(main())
