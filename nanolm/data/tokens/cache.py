"""The cache of tokenized corpora: each is written once as shards and read through memory maps.

The folder of a stream is named after a hash of everything that it depends on: the text, its splits, the tokenizer and
its code, and whether rows are lines or documents. A changed text or setting therefore leads to another folder, and a
stale one is never used. The checksums of a stream are verified each time it is opened (about a second per gigabyte);
a damaged stream is reported and rebuilt.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nanolm import terminal
from nanolm.checksummed import find_damage, remove_leftovers
from nanolm.config.run import Config
from nanolm.data import tokenizers
from nanolm.data.corpus import Corpus
from nanolm.data.download import CACHE_OPTION, cache_folder
from nanolm.data.tokenizers import Tokenizer
from nanolm.data.tokens.keys import digest, stream_key, tokenizer_key
from nanolm.data.tokens.shards import open_streams, write_streams
from nanolm.data.tokens.stream import Stream
from nanolm.errors import DataError, NanolmError, explain_os_error
from nanolm.files import remove_tree, write_durably
from nanolm.locks import Lock, LockTimeout, describe

Report = Callable[[str], None]


def fit_tokenizer(corpus: Corpus, config: Config) -> Tokenizer:
    """Fit the configured tokenizer to a corpus, or read it from the cache.

    Raises:
        PathError, DiskError: the cache cannot be written.
    """
    name = config.tokenizer.name
    path = cache_folder() / "streams" / "tokenizers" / f"{name}-{digest(tokenizer_key(corpus, config))}.json"
    hash_path = path.with_suffix(".sha256")
    with contextlib.suppress(OSError, NanolmError):
        if hashlib.sha256(path.read_bytes()).hexdigest() == hash_path.read_text(encoding="utf-8"):
            return tokenizers.from_file(path)
    with _progress_bar("fitting the tokenizer", corpus) as bar:
        tokenizer = tokenizers.fit(config.tokenizer, _texts(corpus, bar))
    content = tokenizers.to_text(name, tokenizer).encode()
    with _writing_in(path.parent):
        write_durably(path, content)
        write_durably(hash_path, hashlib.sha256(content).hexdigest().encode())
    return tokenizer


def tokenize(corpus: Corpus, tokenizer: Tokenizer, config: Config, report: Report = terminal.say) -> dict[str, Stream]:
    """Return the tokens of every split of a corpus, from the cache if they are there.

    Args:
        config: decides the rows and the context length.
        report: receives messages, such as that a damaged stream is rebuilt.

    Raises:
        DataError: a split is too short for one context and its target.
        PathError, DiskError: the cache cannot be written.
    """
    streams = open_streams(prepare(corpus, tokenizer, config, report), config.size.context_length)
    for split, stream in streams.items():
        _check_length(split, stream, config)
    return streams


def prepare(corpus: Corpus, tokenizer: Tokenizer, config: Config, report: Report = terminal.say) -> Path:
    """Make sure that the cache has the intact tokens of a corpus, and return their folder.

    Only one process builds a stream; others that need the same one wait for it. A build that fails or is interrupted
    leaves no files. The arguments are those of `tokenize`.

    Raises:
        PathError, DiskError: the cache cannot be written.
    """
    key = stream_key(corpus, tokenizer, config)
    folder = cache_folder() / "streams" / f"{corpus.config.name}-{config.tokenizer.name}-{digest(key)}"
    if folder.exists() and next(find_damage(folder), None) is None:
        return folder
    with _writing_in(folder.parent), _build_lock(folder, report):
        # Another process may have built it while this one waited.
        if folder.exists() and (damage := next(find_damage(folder), None)):
            report(f"the cached tokens are damaged and will be rebuilt: {damage} ({folder})")
            remove_tree(folder)
        if not folder.exists():
            remove_leftovers(folder.parent, f"{folder.name}.*")
            with _progress_bar("tokenizing", corpus) as bar:
                write_streams(folder, corpus, tokenizer, key, bar.update)
    return folder


def _check_length(split: str, stream: Stream, config: Config) -> None:
    sampling, context_length = config.trainer.sampling, config.size.context_length
    if stream.rows is not None:
        if stream.scored_tokens < 1:
            raise DataError(
                f"the {split} split has no {sampling.name[:-1]} with a token to predict",
                where=f"dataset.{split}_fraction, trainer.sampling {sampling.name}",
                hint="use a longer text, or trainer.sampling=windows",
            )
    elif len(stream.tokens) < context_length + 1:
        dataset = config.dataset
        fractions = f"dataset.val_fraction {dataset.val_fraction}, dataset.test_fraction {dataset.test_fraction}"
        raise DataError(
            f"the {split} split has {len(stream.tokens):,} tokens, and a context of {context_length:,} "
            f"needs {context_length + 1:,}",
            where=f"size.context_length {context_length}, {fractions}",
            hint="use a longer text, a shorter size.context_length"
            + (f", or a larger dataset.{split}_fraction" if split != "train" else ""),
        )


@contextlib.contextmanager
def _writing_in(folder: Path) -> Iterator[None]:
    """Create a folder of the cache; explain errors of writing to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise explain_os_error(error, "the tokens cannot be written", where=str(folder), option=CACHE_OPTION) from error


@contextlib.contextmanager
def _build_lock(folder: Path, report: Report) -> Iterator[None]:
    """Hold the lock of a stream, so that no other process builds it at the same time."""
    lock = Lock(folder.with_name(f".{folder.name}.lock"), CACHE_OPTION)
    try:
        lock.acquire(timeout=1)
    except LockTimeout as error:
        report(
            f"waiting for another process that tokenizes the same text ({folder}): {describe(error.holder)}\n"
            f"  hint:  {error.hint}"
        )
        lock.acquire(report=lambda text: None)
    try:
        yield
    finally:
        lock.release()


def _texts(corpus: Corpus, bar: Any) -> Iterator[str]:
    for piece in corpus.pieces():
        yield piece.text
        bar.update(len(piece.text))


def _progress_bar(description: str, corpus: Corpus) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=sum(corpus.n_characters.values()),
        desc=description,
        unit=" characters",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
        delay=0.5,
        leave=False,
        dynamic_ncols=True,
    )
