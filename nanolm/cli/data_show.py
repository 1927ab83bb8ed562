"""`nanolm data show`: show what a model is trained on."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from nanolm import option_types as types
from nanolm.cli.arguments import add_json, add_overrides
from nanolm.cli.dataset import load_dataset
from nanolm.data.batches import IGNORE_INDEX, draw
from nanolm.data.tokenizers import Tokenizer
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens.stream import Stream
from nanolm.errors import SettingsError
from nanolm.json_text import dump_json
from nanolm.machine import batch_bytes, host_memory
from nanolm.option_types import Parser
from nanolm.runs.console import in_units

if TYPE_CHECKING:
    from nanolm.tables import Console

# The settings that decide the tokens, as `data show` heads them.
SHOWN_SETTINGS = ("val_fraction", "test_fraction", "split_by", "newlines", "bom", "nul")


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    add_overrides(parser)
    parser.add("--tokens", check=types.COUNT, default=24, metavar="N", help="number of tokens to show (default: 24)")
    add_json(parser)


def run(arguments: Namespace) -> int:
    """Print what a model is trained on."""
    found = look(arguments, arguments.tokens)
    if arguments.json:
        print(dump_json(found))
    else:
        _print(found)
    return 0


def look(arguments: Namespace, n_tokens: int = 24) -> dict[str, Any]:
    """What a model of this line would see, as plain values.

    Args:
        arguments: with the overrides of the command line.
        n_tokens: how many of the first tokens, of the vocabulary and of each row of the batch to show.

    Raises:
        NanolmError: the line or the text is not as it must be.
    """
    line, corpus, tokenizer = load_dataset(arguments)
    config = line.config
    streams = token_cache.tokenize(corpus, tokenizer, config)
    train = streams["train"]
    first = train.tokens[:n_tokens]
    shown = np.unique(np.linspace(0, tokenizer.vocab_size - 1, min(n_tokens, tokenizer.vocab_size)).astype(np.int64))
    needed, has = batch_bytes(config.trainer.batch_size, config.size.context_length), host_memory()
    if has is not None and needed > has:
        raise SettingsError(
            f"the tokens of a batch take {in_units(needed)}, and this machine has {in_units(has)}",
            where=f"trainer.batch_size={config.trainer.batch_size}, size.context_length={config.size.context_length}",
            hint="a smaller trainer.batch_size",
        )
    inputs_BxT, targets_BxT, _ = draw(
        config.trainer.sampling,
        train,
        seed=config.seed,
        step=0,
        batch_size=config.trainer.batch_size,
        context_length=config.size.context_length,
    )
    return {
        "dataset": line.choices["dataset"],
        "settings": {key: _plain(getattr(config.dataset, key)) for key in SHOWN_SETTINGS},
        "fingerprint": corpus.fingerprint,
        "tokenizer": line.choices["tokenizer"],
        "vocab_size": tokenizer.vocab_size,
        "lossless": tokenizer.lossless,
        "splits": {split: _counts(stream) for split, stream in streams.items()},
        "vocabulary": [_token(tokenizer, token) for token in shown.tolist()],
        "first_tokens": [_token(tokenizer, token) for token in first.tolist()],
        "batch": {
            "batches": config.trainer.sampling.name,
            "shape": list(inputs_BxT.shape),
            "scored": int((targets_BxT != IGNORE_INDEX).sum()),
            "rows": [
                {"inputs": _side(tokenizer, inputs_T), "targets": _side(tokenizer, targets_T)}
                for inputs_T, targets_T in _without_padding(inputs_BxT[:3, :n_tokens], targets_BxT[:3, :n_tokens])
            ],
        },
    }


def _print(found: dict[str, Any]) -> None:
    from rich.text import Text

    console = _console()
    console.print(Text(f"{found['dataset']} in {found['tokenizer']} tokens", "bold"))
    console.print(Text(", ".join(f"{key} {value}" for key, value in found["settings"].items()), "dim"))
    console.print(_splits_table(found["splits"]))
    lossless = "lossless" if found["lossless"] else "lossy: some text does not come back"
    console.print(Text.assemble(("vocabulary", "bold"), f"  {found['vocab_size']:,} kinds, {lossless}"))
    _print_tokens(console, found["vocabulary"])
    console.print(Text("first tokens of train", "bold"))
    _print_tokens(console, found["first_tokens"])
    batch = found["batch"]
    shape = " x ".join(map(str, batch["shape"]))
    console.print(
        Text.assemble(
            ("the first batch", "bold"),
            f"  {shape} of {batch['batches']}, {batch['scored']:,} targets scored; its first rows begin",
        )
    )
    console.print(_batch_table(batch["rows"]))


def _counts(stream: Stream) -> dict[str, Any]:
    n_tokens = len(stream.tokens)
    counts = {
        "documents": stream.n_documents,
        "characters": stream.n_characters,
        "bytes": stream.n_bytes,
        "tokens": n_tokens,
        "bytes_per_token": stream.n_bytes / n_tokens,
    }
    return counts if stream.rows is None else {**counts, "rows": len(stream.rows)}


def _plain(value: Any) -> Any:
    return getattr(value, "name", value)


def _token(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    return {"id": token, "text": tokenizer.decode([token])}


def _side(tokenizer: Tokenizer, tokens_T: np.ndarray) -> dict[str, Any]:
    ids = tokens_T.tolist()
    return {"ids": ids, "text": tokenizer.decode([token for token in ids if token != IGNORE_INDEX])}


def _without_padding(inputs_BxT: np.ndarray, targets_BxT: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each row up to its last target that is scored."""
    for inputs_T, targets_T in zip(inputs_BxT, targets_BxT, strict=True):
        end = int(np.flatnonzero(targets_T != IGNORE_INDEX).max(initial=-1)) + 1
        yield inputs_T[:end], targets_T[:end]


def _console() -> Console:
    from nanolm.tables import Console

    return Console()


def _splits_table(splits: dict[str, dict[str, Any]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("split")
    for name in next(iter(splits.values())):
        table.add_column(name.replace("_", " "), justify="right")
    for split, counts in splits.items():
        numbers = (f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" for value in counts.values())
        table.add_row(split, *numbers)
    return table


def _print_tokens(console: Console, tokens: list[dict[str, Any]]) -> None:
    """In columns of one width, each id beside its text."""
    from rich.columns import Columns
    from rich.padding import Padding
    from rich.text import Text

    width = max(len(str(token["id"])) for token in tokens)
    cells = [
        Text.assemble((f"{token['id']:>{width}} ", "dim"), repr(token["text"]), no_wrap=True, overflow="ellipsis")
        for token in tokens
    ]
    console.print(Padding(Columns(cells, equal=True, padding=(0, 2)), (0, 0, 1, 2)))


def _batch_table(rows: list[dict[str, Any]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    table.add_column("row", justify="right")
    table.add_column("")
    table.add_column("ids", overflow="fold", ratio=1)
    table.add_column("text", overflow="fold", ratio=1)
    for number, row in enumerate(rows):
        for side in ("inputs", "targets"):
            ids = " ".join("." if token == IGNORE_INDEX else str(token) for token in row[side]["ids"])
            table.add_row(
                str(number) if side == "inputs" else "", side, Text(ids, "dim"), Text(repr(row[side]["text"]))
            )
    return table
