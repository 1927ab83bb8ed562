"""`nanolm data show`: show what a model is trained on."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import numpy as np

from nanolm import option_types as types
from nanolm.cli.arguments import add_json, add_overrides, load_dataset
from nanolm.compose import ComposedCommand
from nanolm.config.batch_schedule import stage_at
from nanolm.config.fields import plain
from nanolm.data.batches import IGNORE_INDEX, draw
from nanolm.data.corpus import Corpus
from nanolm.data.tokenizers import Tokenizer
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens.stream import Stream
from nanolm.errors import SettingsError
from nanolm.json_text import dump_json
from nanolm.machine import batch_bytes, host_memory
from nanolm.option_types import Parser
from nanolm.wording import format_bytes

# Settings of the dataset that affect the tokens.
SHOWN_SETTINGS = ("val_fraction", "test_fraction", "split_by", "newlines", "bom", "nul")


def add_arguments(parser: Parser) -> None:
    add_overrides(parser)
    parser.add("--tokens", check=types.COUNT, default=24, metavar="N", help="number of tokens to show")
    add_json(parser)


def run(arguments: Namespace) -> None:
    result = _describe(*load_dataset(arguments), arguments.tokens)
    if arguments.json:
        print(dump_json(result))
    else:
        _print(result)


def _describe(line: ComposedCommand, corpus: Corpus, tokenizer: Tokenizer, n_tokens: int) -> dict[str, Any]:
    """Describe the tokens and the first batch of a run, as plain values.

    Args:
        n_tokens: how many of the first tokens, of the vocabulary and of each row of the batch to include.

    Raises:
        SettingsError: the tokens of a batch do not fit into memory.
    """
    config = line.config
    streams = token_cache.tokenize(corpus, tokenizer, config)
    train = streams["train"]
    n_shown = min(n_tokens, tokenizer.vocab_size)
    vocabulary = np.unique(np.linspace(0, tokenizer.vocab_size - 1, n_shown).astype(np.int64))
    stage = stage_at(config, 0)
    needed, available = batch_bytes(stage.batch_size, stage.context_length), host_memory()
    if available is not None and needed > available:
        raise SettingsError(
            f"the tokens of a batch take {format_bytes(needed)}, and this machine has {format_bytes(available)}",
            where=f"trainer.batch_size={stage.batch_size}, size.context_length={stage.context_length}",
            hint="reduce trainer.batch_size",
        )
    inputs_BxT, targets_BxT, _ = draw(
        config.trainer.sampling,
        train,
        stage,
        seed=config.seed,
        step=0,
    )
    return {
        "dataset": line.choices["dataset"],
        "settings": {key: plain(getattr(config.dataset, key)) for key in SHOWN_SETTINGS},
        "fingerprint": corpus.fingerprint,
        "tokenizer": line.choices["tokenizer"],
        "vocab_size": tokenizer.vocab_size,
        "lossless": tokenizer.lossless,
        "splits": {split: _counts(stream) for split, stream in streams.items()},
        "vocabulary": [_token(tokenizer, token) for token in vocabulary.tolist()],
        "first_tokens": [_token(tokenizer, token) for token in train.tokens[:n_tokens].tolist()],
        "batch": {
            "sampling": config.trainer.sampling.name,
            "shape": list(inputs_BxT.shape),
            "scored": int((targets_BxT != IGNORE_INDEX).sum()),
            "rows": [
                {"inputs": _side(tokenizer, inputs_T), "targets": _side(tokenizer, targets_T)}
                for inputs_T, targets_T in _without_padding(inputs_BxT[:3, :n_tokens], targets_BxT[:3, :n_tokens])
            ],
        },
    }


def _print(result: dict[str, Any]) -> None:
    from nanolm.tables import Console, Table, cell

    console = Console()
    console.print(cell(f"{result['dataset']} with tokenizer {result['tokenizer']}", "bold"))
    console.print(cell(", ".join(f"{key} {value}" for key, value in result["settings"].items()), "dim"))
    splits = result["splits"]
    names = list(next(iter(splits.values())))
    table = Table(["split", *(name.replace("_", " ") for name in names)], "l" + "r" * len(names))
    for split, counts in splits.items():
        numbers = (f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" for value in counts.values())
        table.add_row(split, *numbers)
    console.print(table)
    lossless = "lossless" if result["lossless"] else "lossy: some text cannot be decoded exactly"
    console.print(f"[bold]vocabulary[/]  {result['vocab_size']:,} tokens, {lossless}")
    _print_tokens(result["vocabulary"])
    console.print("[bold]first tokens of train[/]")
    _print_tokens(result["first_tokens"])
    batch = result["batch"]
    shape = " x ".join(map(str, batch["shape"]))
    console.print(f"[bold]first batch[/]  {shape}, {batch['sampling']}, {batch['scored']:,} targets; its first rows:")
    table = Table(["row", "", "ids", "text"], "rlll")
    for number, row in enumerate(batch["rows"]):
        for side in ("inputs", "targets"):
            ids = " ".join("." if token == IGNORE_INDEX else str(token) for token in row[side]["ids"])
            table.add_row(str(number) if side == "inputs" else "", side, cell(ids, "dim"), repr(row[side]["text"]))
    for column in table.columns[2:]:
        column.ratio = 1
    console.print(table)


def _counts(stream: Stream) -> dict[str, Any]:
    n_tokens = len(stream.tokens)
    counts = {
        "documents": stream.n_documents,
        "characters": stream.n_characters,
        "bytes": stream.n_bytes,
        "tokens": n_tokens,
        "bytes_per_token": stream.n_bytes / n_tokens,
    }
    if stream.scored is not None:
        counts["scored_tokens"] = stream.scored_tokens
    return counts if stream.rows is None else {**counts, "rows": len(stream.rows)}


def _token(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    return {"id": token, "text": tokenizer.decode([token])}


def _side(tokenizer: Tokenizer, tokens_T: np.ndarray) -> dict[str, Any]:
    ids = tokens_T.tolist()
    return {"ids": ids, "text": tokenizer.decode([token for token in ids if token != IGNORE_INDEX])}


def _without_padding(inputs_BxT: np.ndarray, targets_BxT: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut each row where its padding begins; a prompt is not scored, but no padding."""
    for inputs_T, targets_T in zip(inputs_BxT, targets_BxT, strict=True):
        end = int(np.flatnonzero((targets_T != IGNORE_INDEX) | (inputs_T != 0)).max(initial=-1)) + 1
        yield inputs_T[:end], targets_T[:end]


def _print_tokens(tokens: list[dict[str, Any]]) -> None:
    """Print tokens in columns, each id with its text."""
    from rich.columns import Columns
    from rich.padding import Padding
    from rich.text import Text

    from nanolm.tables import Console

    width = max(len(str(token["id"])) for token in tokens)
    cells = [
        Text.assemble((f"{token['id']:>{width}} ", "dim"), repr(token["text"]), no_wrap=True, overflow="ellipsis")
        for token in tokens
    ]
    Console().print(Padding(Columns(cells, equal=True, padding=(0, 2)), (0, 0, 1, 2)))
