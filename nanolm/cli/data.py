"""`nanolm data`: the tokens of a `nanolm train` line ahead of time (`prepare`), and a look at them (`show`)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanolm import terminal
from nanolm.compose import Line, compose_line
from nanolm.config.checks import check
from nanolm.data import corpus as corpora
from nanolm.data.batches import IGNORE_INDEX, draw
from nanolm.data.corpus import Corpus
from nanolm.data.tokenizers import Tokenizer
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens.stream import Stream
from nanolm.errors import SettingsError, raise_all
from nanolm.json_text import dump_json
from nanolm.machine import batch_bytes, host_memory
from nanolm.runs.console import in_units

if TYPE_CHECKING:
    from nanolm.tables import Console

# The settings that decide the tokens, as `data show` heads them.
SHOWN_SETTINGS = ("val_fraction", "test_fraction", "split_by", "newlines", "bom", "nul")


def prepare(overrides: Sequence[str], config_dir: str | None = None) -> Path:
    """Reads, tokenizes and stores what a line would train on; returns the folder of the tokens.

    Raises:
        NanolmError: the line, the text or the disk is not as it must be.
    """
    line, corpus, tokenizer = _read(overrides, config_dir)
    token_cache.tokenize(corpus, tokenizer, line.config)
    return token_cache.prepare(corpus, tokenizer, line.config)


def print_prepared(overrides: Sequence[str], config_dir: str | None = None) -> None:
    """Does it and says what there is now.

    Raises:
        NanolmError: as `prepare`.
    """
    from rich.markup import escape

    began = time.perf_counter()
    folder = prepare(overrides, config_dir)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    console = _console()
    counted = (f"{split} {about['tokens']:,}" for split, about in manifest["splits"].items())
    n_bytes = sum(file["bytes"] for file in manifest["files"].values())
    rows = [
        ("tokens", f"{', '.join(counted)}; {manifest['vocab_size']:,} kinds"),
        ("on disk", f"{n_bytes / 2**20:,.1f} MiB of {manifest['dtype']} in {len(manifest['files'])} files"),
        ("folder", str(folder)),
        ("took", f"{time.perf_counter() - began:.1f} s"),
    ]
    for name, value in rows:
        console.print(f"{name:<8} {escape(value)}", soft_wrap=True)


def look(overrides: Sequence[str], config_dir: str | None = None, n_tokens: int = 24) -> dict[str, Any]:
    """What a model of this line would see, as plain values.

    Args:
        overrides: as `nanolm train` takes them.
        config_dir: the user's own folder of YAML files.
        n_tokens: how many of the first tokens, of the vocabulary and of each row of the batch to show.

    Raises:
        NanolmError: as `prepare`.
    """
    line, corpus, tokenizer = _read(overrides, config_dir)
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


def show(overrides: Sequence[str], config_dir: str | None = None, n_tokens: int = 24, as_json: bool = False) -> None:
    """Prints what a model of this line would see.

    Raises:
        NanolmError: as `prepare`.
    """
    found = look(overrides, config_dir, n_tokens)
    if as_json:
        print(dump_json(found))
        return
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


def _read(overrides: Sequence[str], config_dir: str | None) -> tuple[Line, Corpus, Tokenizer]:
    line = compose_line(overrides, config_dir)
    raise_all(check(line.config))
    corpus = corpora.load(line.config.dataset)
    for note in corpus.notes:
        terminal.say(f"nanolm: {note}")
    return line, corpus, token_cache.fit_tokenizer(corpus, line.config)


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
