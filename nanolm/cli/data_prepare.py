"""`nanolm data prepare`: tokenize a dataset ahead of training, into the cache."""

from __future__ import annotations

import json
import time
from argparse import Namespace

from nanolm.cli.arguments import add_overrides, load_dataset
from nanolm.data.tokens import cache as token_cache
from nanolm.option_types import Parser


def add_arguments(parser: Parser) -> None:
    add_overrides(parser)


def run(arguments: Namespace) -> None:
    """Tokenize the text, and print the number of tokens and where they are."""
    from nanolm.tables import Console, cell

    start = time.perf_counter()
    line, corpus, tokenizer = load_dataset(arguments)
    token_cache.tokenize(corpus, tokenizer, line.config)
    folder = token_cache.prepare(corpus, tokenizer, line.config)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    counts = ", ".join(f"{split} {about['tokens']:,}" for split, about in manifest["splits"].items())
    n_bytes = sum(file["bytes"] for file in manifest["files"].values())
    console = Console()
    for name, value in (
        ("tokens", f"{counts}; vocab size {manifest['vocab_size']:,}"),
        ("on disk", f"{n_bytes / 2**20:,.1f} MiB of {manifest['dtype']} in {len(manifest['files'])} files"),
        ("folder", str(folder)),
        ("took", f"{time.perf_counter() - start:.1f} s"),
    ):
        console.print(cell(f"{name:<8} {value}"), soft_wrap=True)
