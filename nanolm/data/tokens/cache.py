"""The tokenized corpus: written once in shards, kept in the cache, and read through memory maps.

Beside the tokens of a split stands where each of its documents begins in them.

A stream's folder is named after what it was made of: the fingerprint of the text, how it is split, the tokenizer and
its code, and whether rows are lines or documents. Another text or another setting is another folder, so that a stale
one is never used. Every shard's size and sha256 are compared with the manifest each time a stream is opened (about a
second a gigabyte); a damaged one is named and built anew.

Long documents reach the tokenizer in parts of some megabytes, cut behind line ends; all others whole.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import functools
import hashlib
import inspect
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from nanolm import terminal
from nanolm.config.fields import leaves
from nanolm.config.run import Config
from nanolm.config.trainer import Sampling
from nanolm.data import tokenizers
from nanolm.data.corpus import Corpus, split_settings
from nanolm.data.download import cache_folder
from nanolm.data.tokenizers import Tokenizer, smallest_dtype
from nanolm.data.tokens.stream import Rows, Shards, Stream, Tokens
from nanolm.errors import DataError, NanolmError, explain_os_error
from nanolm.files import remove_tree, sync_folder, temporary_sibling, user_path, write_durably
from nanolm.json_text import dump_json
from nanolm.registry import TOKENIZERS

# Raised whenever the layout or the meaning of the files changes.
FORMAT = 2
SHARD_TOKENS = 2**26
# Characters that go to the tokenizer at once, in whole documents or parts of long ones.
GROUP_CHARACTERS = 2**20
# Below so many characters, starting worker processes costs more than they save.
PARALLEL_CHARACTERS = 2**23

Say = Callable[[str], None]


def fit_tokenizer(corpus: Corpus, config: Config) -> Tokenizer:
    """The tokenizer that the settings name, fitted to the corpus, or taken from the cache where that was done before.

    Raises:
        DataError: the disk is full.
        PathError, DiskError: the cache cannot be written for another reason.
    """
    about = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        # The texts come split by split, and a tokenizer may heed their order.
        "splits": split_settings(corpus.config),
        "settings": {key: _plain(value) for key, _, value in leaves(config.tokenizer)},
        "files": {key: _file_hash(value) for key, _, value in leaves(config.tokenizer)},
        "code": _code(TOKENIZERS[config.tokenizer.name]),
    }
    path = _folder() / "tokenizers" / f"{config.tokenizer.name}-{_key(about)}.json"
    hash_path = path.with_suffix(".sha256")
    with contextlib.suppress(OSError, NanolmError):
        if hashlib.sha256(path.read_bytes()).hexdigest() == hash_path.read_text(encoding="utf-8"):
            return tokenizers.from_file(path)
    with _bar("fitting the tokenizer", sum(corpus.n_characters.values())) as bar:
        tokenizer = tokenizers.fit(config.tokenizer, _shown(corpus, bar))
    content = tokenizers.to_text(config.tokenizer.name, tokenizer).encode()
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, content)
        write_durably(hash_path, hashlib.sha256(content).hexdigest().encode())
    return tokenizer


def tokenize(corpus: Corpus, tokenizer: Tokenizer, config: Config, say: Say | None = None) -> dict[str, Stream]:
    """Every split of a corpus as tokens, from the cache, or written there first.

    Args:
        corpus: the text.
        tokenizer: fitted to it.
        config: decides rows and the context length.
        say: tells the user that a damaged stream is built anew; None prints to stderr.

    Raises:
        DataError: a split is too short for one context and its target; the disk is full.
        PathError, DiskError: the cache cannot be written for another reason.
    """
    folder = prepare(corpus, tokenizer, config, say)
    streams = _open(folder, config.size.context_length)
    for split, stream in streams.items():
        _require_enough(split, stream, config)
    return streams


def prepare(corpus: Corpus, tokenizer: Tokenizer, config: Config, say: Say | None = None) -> Path:
    """Makes sure that the cache has the tokens of a corpus, whole; returns their folder.

    Processes that want the same stream wait for the one that builds it. What is built gets its name when all of it is
    on disk; a build that fails or is stopped leaves nothing.

    Raises:
        DataError: the disk is full.
        PathError, DiskError: the cache cannot be written for another reason.
    """
    say = say or terminal.say
    name = config.tokenizer.name
    about = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "splits": split_settings(corpus.config),
        "tokenizer": tokenizers.fingerprint(name, tokenizer),
        "code": _code(type(tokenizer)),
        "rows": config.trainer.sampling.name if config.trainer.sampling.in_rows else None,
    }
    folder = _folder() / f"{corpus.config.name}-{name}-{_key(about)}"
    if folder.exists() and not _damage(folder):
        return folder
    with _writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_builder(folder, say):
            # Another process may have built it while this one waited.
            damage = _damage(folder) if folder.exists() else None
            if damage:
                say(f"the tokens in the cache are damaged and are built anew: {damage} ({folder})")
                remove_tree(folder)
            if not folder.exists():
                _build(folder, corpus, tokenizer, about)
    return folder


def _require_enough(split: str, stream: Stream, config: Config) -> None:
    if stream.rows is not None:
        if stream.scored_tokens < 1:
            raise DataError(
                f"the {split} split has no {config.trainer.sampling.name[:-1]} with anything to predict",
                where=f"dataset.{split}_fraction, trainer.sampling {config.trainer.sampling.name}",
                hint="a longer text, or trainer.sampling=windows",
            )
        return
    needed = config.size.context_length + 1
    if len(stream.tokens) < needed:
        held_out = ", ".join(
            f"dataset.{name} {getattr(config.dataset, name)}" for name in ("val_fraction", "test_fraction")
        )
        raise DataError(
            f"the {split} split has {len(stream.tokens):,} tokens, and a context of "
            f"{config.size.context_length:,} needs {needed:,}",
            where=f"size.context_length {config.size.context_length}, {held_out}",
            hint="a longer text, a shorter size.context_length"
            + (f", or a larger dataset.{split}_fraction" if split != "train" else ""),
        )


def _folder() -> Path:
    return cache_folder() / "streams"


def _key(about: dict[str, Any]) -> str:
    return hashlib.sha256(dump_json(about, sort_keys=True).encode()).hexdigest()[:20]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


@functools.cache
def _code(kind: type[Any]) -> dict[str, str]:
    """The source of a class and the versions of the libraries it may lean on: what its fingerprint lacks."""
    import importlib.metadata

    versions = {}
    for package in ("tokenizers", "sentencepiece", "tiktoken", "torchtext", "spacy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    with contextlib.suppress(OSError, TypeError):
        path = Path(inspect.getfile(kind))
        # Ours lean on their neighbours; a plugin's may stand anywhere, beside anything.
        sources = sorted(path.parent.glob("*.py")) if kind.__module__.startswith("nanolm.") else [path]
        versions["source"] = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return versions


def _file_hash(value: Any) -> str | None:
    """Stands for the content of the file or folder that a setting names, if it names one."""
    if not isinstance(value, str) or not value:
        return None
    with contextlib.suppress(OSError):
        path = user_path(value)
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        if path.is_dir():
            inside = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(path.iterdir())]
            return hashlib.sha256(repr(inside).encode()).hexdigest()
    return None


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns what the disk refuses into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            option = "export NANOLM_CACHE=FOLDER"
            raise explain_os_error(error, "the tokens cannot be written", where=str(folder), option=option) from error
        free = ""
        with contextlib.suppress(OSError):
            free = f"; {shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free there"
        raise DataError(
            f"the tokens cannot be written: {error.strerror or error}",
            where=f"{folder}{free}",
            hint="make room (two to four bytes a token are needed), or choose another disk: export NANOLM_CACHE=FOLDER",
        ) from error


@contextlib.contextmanager
def _only_builder(folder: Path, say: Say) -> Iterator[None]:
    """Waits until no other process builds this stream, and keeps others waiting."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"waiting for another process that tokenizes the same text ({folder})")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _damage(folder: Path) -> str | None:
    """What is wrong with a stream on disk; None where every byte is as it was written."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        if manifest["sha256"] != _manifest_hash(manifest):
            return "manifest.json has been altered"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is missing or damaged"
    for name, (size, _) in files.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} bytes, and was written with {size:,}"
    for name, (_, sha256) in files.items():
        try:
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    return f"{name} has been altered"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _manifest_hash(manifest: dict[str, Any]) -> str:
    return _key({key: value for key, value in manifest.items() if key != "sha256"})


def _open(folder: Path, context_length: int) -> dict[str, Stream]:
    """The streams of a folder that has been found whole."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    dtype = np.dtype(manifest["dtype"])
    streams = {}
    for split, about in manifest["splits"].items():
        shards = [_map(folder / name, dtype) for name in about["shards"]]
        tokens: Tokens = shards[0] if len(shards) == 1 else Shards(shards)
        rows = None
        unscored_bytes = about["first_token_bytes"]
        if about["rows"] is not None:
            rows = Rows(_map(folder / about["rows"], np.dtype(np.uint64)), manifest["start"], context_length)
            unscored_bytes = about["first_tokens_bytes"] if rows.start is None else 0
        streams[split] = Stream(
            tokens=tokens,
            scored_bytes=about["bytes" if manifest["lossless"] else "text_bytes"] - unscored_bytes,
            rows=rows,
            documents=_map(folder / about["documents"], np.dtype(np.uint64)),
            n_characters=about["characters"],
            n_bytes=about["text_bytes"],
        )
    return streams


def _map(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    # As a plain array: every slice of a memmap costs several times one of an array.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


@dataclasses.dataclass
class _Group:
    """Text on its way to the tokenizer, some documents at a time."""

    split: str
    texts: list[str] = dataclasses.field(default_factory=list)
    begins: list[bool] = dataclasses.field(default_factory=list)
    characters: int = 0


@dataclasses.dataclass
class _Encoded:
    """Its tokens; where documents and rows begin in them; bytes of the tokens, the text, and the rows' first tokens."""

    ids: np.ndarray
    document_starts: np.ndarray
    row_starts: np.ndarray
    bytes: int
    text_bytes: int
    first_tokens_bytes: int


def _build(folder: Path, corpus: Corpus, tokenizer: Tokenizer, about: dict[str, Any]) -> None:
    """Writes a stream beside its place and moves it there when it is whole and on disk."""
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        remove_tree(leftover, ignore_errors=True)
    temporary = temporary_sibling(folder)
    try:
        temporary.mkdir()
        dtype = smallest_dtype(tokenizer.vocab_size)
        with contextlib.ExitStack() as stack:
            writers = {
                split: stack.enter_context(_SplitWriter(temporary, split, dtype, about["rows"] is not None))
                for split in corpus.splits
            }
            bar = stack.enter_context(_bar("tokenizing", sum(corpus.n_characters.values())))
            groups = _groups(corpus, writers)
            for group, encoded in _encode_all(groups, tokenizer, about["rows"], sum(corpus.n_characters.values())):
                writers[group.split].add(group, encoded, tokenizer)
                bar.update(group.characters)
            for writer in writers.values():
                writer.finish()
        files = {name: entry for writer in writers.values() for name, entry in writer.files.items()}
        manifest = {
            "about": about,
            "dtype": dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "lossless": tokenizer.lossless,
            "start": _line_end(tokenizer) if about["rows"] is not None else None,
            "splits": {split: writer.about() for split, writer in writers.items()},
            "files": files,
        }
        manifest["sha256"] = _manifest_hash(manifest)
        write_durably(temporary / "manifest.json", (dump_json(manifest, indent=2) + "\n").encode())
        temporary.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        remove_tree(temporary, ignore_errors=True)
        raise


def _groups(corpus: Corpus, splits: Iterable[str]) -> Iterator[_Group]:
    """The pieces of a corpus, gathered by split into portions that are worth a trip to another process."""
    groups = {split: _Group(split) for split in splits}
    for piece in corpus.pieces():
        group = groups[piece.split]
        group.texts.append(piece.text)
        group.begins.append(piece.begins)
        group.characters += len(piece.text)
        if group.characters >= GROUP_CHARACTERS:
            yield group
            groups[piece.split] = _Group(piece.split)
    yield from (group for group in groups.values() if group.texts)


def _encode_all(
    groups: Iterator[_Group], tokenizer: Tokenizer, rows: str | None, n_characters: int
) -> Iterator[tuple[_Group, _Encoded]]:
    """Encodes groups in order: in this process where there is little to do, else in several, a few groups ahead."""
    n_workers = min(_n_cores(), 16)
    if n_characters < PARALLEL_CHARACTERS or n_workers == 1:
        for group in groups:
            yield group, _encode(tokenizer, group.texts, group.begins, rows)
        return
    # Not by fork: this process has threads (of torch, of tokenizers), which do not survive one.
    pool = ProcessPoolExecutor(
        n_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(type(tokenizer), tokenizer.to_json(), tokenizer.lossless),
    )
    ahead: collections.deque[tuple[_Group, Future[_Encoded] | None]] = collections.deque()

    def result(group: _Group, future: Future[_Encoded] | None) -> _Encoded:
        # A worker may have been killed, or the caller's main module may have no `if __name__ == "__main__"`.
        with contextlib.suppress(BrokenProcessPool):
            if future is not None:
                return future.result()
        return _encode(tokenizer, group.texts, group.begins, rows)

    try:
        for group in groups:
            try:
                ahead.append((group, pool.submit(_encode_in_worker, group.texts, group.begins, rows)))
            except BrokenProcessPool:
                ahead.append((group, None))
            if len(ahead) > 2 * n_workers:
                first, future = ahead.popleft()
                yield first, result(first, future)
        while ahead:
            first, future = ahead.popleft()
            yield first, result(first, future)
    finally:
        pool.shutdown(cancel_futures=True)


_WORKER: list[Tokenizer] = []


def _start_worker(kind: type[Tokenizer], state: dict[str, Any], lossless: bool) -> None:
    tokenizer = kind.from_json(state)
    # A plugin's may have been given it after it was made.
    tokenizer.lossless = lossless
    _WORKER[:] = [tokenizer]


def _encode_in_worker(texts: list[str], begins: list[bool], rows: str | None) -> _Encoded:
    return _encode(_WORKER[0], texts, begins, rows)


def _encode(tokenizer: Tokenizer, texts: list[str], begins: list[bool], rows: str | None) -> _Encoded:
    text_bytes = sum(len(text.encode()) for text in texts)
    begins_row = begins
    if rows == Sampling.lines.name:
        # Texts are cut behind line ends, so that each begins with a line.
        lines = [_lines(text) for text in texts]
        texts = [line for inside in lines for line in inside]
        begins = [
            begins_document and number == 0
            for begins_document, inside in zip(begins, lines, strict=True)
            for number in range(len(inside))
        ]
        begins_row = [True] * len(texts)
    encoded = [tokenizer.encode(text) for text in texts]
    ids = encoded[0] if len(encoded) == 1 else np.concatenate(encoded)
    offsets = np.cumsum([0] + [len(one) for one in encoded[:-1]])
    has_tokens = np.array([len(one) > 0 for one in encoded])
    row_starts = offsets[np.array(begins_row) & has_tokens] if rows else offsets[:0]
    return _Encoded(
        ids=ids,
        document_starts=offsets[np.array(begins)],
        row_starts=row_starts,
        bytes=tokenizer.count_bytes(ids) if tokenizer.lossless else 0,
        text_bytes=text_bytes,
        first_tokens_bytes=tokenizer.count_bytes(ids[row_starts]) if len(row_starts) else 0,
    )


def _lines(text: str) -> list[str]:
    """Its lines, each with its line end."""
    *whole, last = text.split("\n")
    return [line + "\n" for line in whole] + ([last] if last else [])


class _SplitWriter:
    """The shards of a split as they grow, their sizes and hashes."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any], has_rows: bool) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self._folder, self._split, self._dtype = folder, split, dtype
        self._shards: list[str] = []
        self._open: _HashedFile | None = None
        self._documents = _HashedFile(folder / f"{split}-documents.bin")
        self._rows = _HashedFile(folder / f"{split}-rows.bin") if has_rows else None
        self._n_tokens = 0
        self._counts = dict.fromkeys(
            ("characters", "bytes", "text_bytes", "first_token_bytes", "first_tokens_bytes"), 0
        )

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._open, self._documents, self._rows):
            if file is not None:
                file.close()

    def add(self, group: _Group, encoded: _Encoded, tokenizer: Tokenizer) -> None:
        """Appends the tokens of a group."""
        counts = self._counts
        if not self._n_tokens and len(encoded.ids):
            counts["first_token_bytes"] = tokenizer.count_bytes(encoded.ids[:1])
        counts["characters"] += group.characters
        counts["bytes"] += encoded.bytes
        counts["text_bytes"] += encoded.text_bytes
        counts["first_tokens_bytes"] += encoded.first_tokens_bytes
        self._documents.write((self._n_tokens + encoded.document_starts).astype(np.uint64))
        if self._rows is not None:
            self._rows.write((self._n_tokens + encoded.row_starts).astype(np.uint64))
        ids = encoded.ids.astype(self._dtype, copy=False)
        self._n_tokens += len(ids)
        while len(ids):
            if self._open is None:
                self._shards.append(f"{self._split}-{len(self._shards):05d}.bin")
                self._open = _HashedFile(self._folder / self._shards[-1])
            room = SHARD_TOKENS - self._open.n_bytes // self._dtype.itemsize
            self._open.write(ids[:room])
            ids = ids[room:]
            if self._open.n_bytes == SHARD_TOKENS * self._dtype.itemsize:
                self._finish_shard()

    def finish(self) -> None:
        """Brings all to disk."""
        self.files[self._documents.path.name] = self._documents.finish()
        if self._rows is not None:
            self._rows.write(np.array([self._n_tokens], dtype=np.uint64))
            self.files[self._rows.path.name] = self._rows.finish()
        if not self._shards:
            self._shards.append(f"{self._split}-00000.bin")
            self._open = _HashedFile(self._folder / self._shards[-1])
        if self._open is not None:
            self._finish_shard()

    def about(self) -> dict[str, Any]:
        """What the manifest says of the split."""
        rows = None if self._rows is None else self._rows.path.name
        files = {"shards": self._shards, "documents": self._documents.path.name, "rows": rows}
        return {"tokens": self._n_tokens, **files, **self._counts}

    def _finish_shard(self) -> None:
        assert self._open is not None
        self.files[self._open.path.name] = self._open.finish()
        self._open = None


class _HashedFile:
    """A file that is hashed as it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_bytes = 0
        self._file = path.open("wb")
        self._sha256 = hashlib.sha256()

    def write(self, array: np.ndarray) -> None:
        """Appends an array's bytes."""
        content = np.ascontiguousarray(array).data
        self._file.write(content)
        self._sha256.update(content)
        self.n_bytes += array.nbytes

    def finish(self) -> dict[str, Any]:
        """Brings it to disk and closes it; its size and sha256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self.n_bytes, "sha256": self._sha256.hexdigest()}

    def close(self) -> None:
        """Closes it as it stands."""
        with contextlib.suppress(OSError):
            self._file.close()


def _line_end(tokenizer: Tokenizer) -> int | None:
    """The token before the first of every line, or None where the tokenizer has none for it."""
    try:
        ids = tokenizer.encode("\n")
    except ValueError:
        return None
    return int(ids[-1]) if len(ids) else None


def _shown(corpus: Corpus, bar: Any) -> Iterator[str]:
    """The texts of a corpus, in a bar as they are read."""
    for piece in corpus.pieces():
        yield piece.text
        bar.update(len(piece.text))


def _bar(what: str, n_characters: int) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=n_characters,
        desc=what,
        unit=" characters",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
        delay=0.5,
        leave=False,
        dynamic_ncols=True,
    )


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
