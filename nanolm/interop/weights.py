"""Weights in the Hugging Face format: safetensors or PyTorch's files, single or in shards, read one tensor at a time.

The files are not trusted: nothing in them is executed, and sizes are checked before memory is allocated.
"""

from __future__ import annotations

import mmap
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from nanolm.errors import NanolmError, RunError, raise_all
from nanolm.interop.sources import HINT, SourceFolder
from nanolm.training.checkpoints.header import TensorInfo, read_layout

# Files of a model have a few hundred shards at most.
MAX_SHARDS = 10_000

# Number formats of weights; all are converted to fp32.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_PLAIN_NAME = re.compile(r"[\w][\w.-]*", re.ASCII)


class _File(Protocol):
    """A file of weights.

    Attributes:
        tensors: shape and dtype of each tensor, by name.
    """

    tensors: dict[str, TensorInfo]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, which may share memory with the file and must not be changed."""

    def release(self) -> None:
        """Give back the memory of the tensors that were read; they are read again when they are used."""


class Weights:
    """The weights of a folder.

    Attributes:
        files: names of the files that were read, an index included.
        tensors: shape and dtype of each tensor, by name.
    """

    def __init__(self, folder: SourceFolder) -> None:
        self.files, names, kind = _find_files(folder)
        problems: list[NanolmError] = []
        self._file_of: dict[str, _File] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for name in names:
            try:
                file = kind(folder, name)
            except NanolmError as error:
                problems.append(error)
                continue
            if twice := sorted(file.tensors.keys() & self.tensors.keys()):
                found = f"{name} has tensors of another file, too: {', '.join(twice[:5])}"
                problems.append(RunError(found, where=str(folder.path), hint=HINT))
            self.tensors |= file.tensors
            self._file_of |= dict.fromkeys(file.tensors, file)
        raise_all(problems)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, which may share memory with its file and must not be changed."""
        return self._file_of[name].tensor(name)

    def release(self, name: str) -> None:
        """Give back the memory of the file of a tensor."""
        self._file_of[name].release()


class _Safetensors:
    """A safetensors file, mapped into memory."""

    def __init__(self, folder: SourceFolder, name: str) -> None:
        with folder.open(name) as file:
            try:
                self._layout = read_layout(file)
                # Private pages that may be written: PyTorch has no read-only tensors.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise RunError(
                    f"the header of {name} is wrong: {error}",
                    where=str(folder.path / name),
                    hint="download the file again",
                ) from error
        self.tensors = {key: tensor for key, (tensor, _) in self._layout.items()}

    def tensor(self, name: str) -> torch.Tensor:
        found, offset = self._layout[name]
        flat = torch.frombuffer(self._map, dtype=found.dtype, count=found.numel(), offset=offset)
        return flat.view(found.shape)

    def release(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class _PyTorch:
    """A file of torch.save, of which only tensors are loaded."""

    def __init__(self, folder: SourceFolder, name: str) -> None:
        folder.open(name).close()
        path = (folder.path / name).resolve()
        where = str(folder.path / name)
        try:
            loaded = _load_tensors(path)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f"Python objects other than tensors ({named[1]})" if named else "something else than tensors"
            raise RunError(
                f"{name} holds {what} and is refused; nothing in it was executed",
                where=where,
                hint="use the model's safetensors files",
            ) from error
        except Exception as error:  # the reader raises errors of many types for a damaged file
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(f"{name} cannot be read: {reason}", where=where, hint="download it again") from error
        if not isinstance(loaded, dict) or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
        ):
            raise RunError(f"{name} is not a table of tensors by name", where=where, hint=HINT)
        self._loaded: dict[str, torch.Tensor] = loaded
        self.tensors = {key: TensorInfo(tuple(value.shape), value.dtype) for key, value in loaded.items()}
        n_bytes = path.stat().st_size
        for key, value in loaded.items():
            if value.layout != torch.strided or value.numel() * value.itemsize > n_bytes:
                found = f"{name} has the tensor {key[:100]!r}, which is not a plain tensor of the file's size"
                raise RunError(found, where=where, hint=HINT)
        # Any number of tensors can share the same bytes; in a real file, the head and the embedding do.
        if sum(value.numel() * value.itemsize for value in loaded.values()) > 2 * n_bytes:
            raise RunError(f"the tensors of {name} have more than twice its size", where=where, hint=HINT)

    def tensor(self, name: str) -> torch.Tensor:
        return self._loaded[name]

    def release(self) -> None:
        pass


def _load_tensors(path: Path) -> Any:
    """Load a file of torch.save without executing anything; raises what torch.load raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
        # The format before PyTorch 1.6.
        return torch.load(path, map_location="cpu", weights_only=True)


# By preference, as transformers: the name of a single file, and how to read it. Shards have an index beside them.
FORMATS: dict[str, Callable[[SourceFolder, str], _File]] = {
    "model.safetensors": _Safetensors,
    "pytorch_model.bin": _PyTorch,
}


def _find_files(folder: SourceFolder) -> tuple[list[str], list[str], Callable[[SourceFolder, str], _File]]:
    """Return the files to read, those of them with weights, and how to read these."""
    for single, kind in FORMATS.items():
        index = index_of(single)
        if folder.has(single):
            return [single], [single], kind
        if folder.has(index):
            shards = read_shards(folder, index)
            if missing := [name for name in shards if not folder.has(name)]:
                more = f" and {len(missing) - 5} more" if missing[5:] else ""
                found = f"the folder has no {', '.join(missing[:5])}{more}, which {index} names"
                raise RunError(found, where=str(folder.path), hint="download the missing files")
            return [index, *shards], shards, kind
    raise RunError(
        f"the folder has no weights: neither {' nor '.join(FORMATS)}, nor their index",
        where=str(folder.path),
        hint=HINT,
    )


def index_of(single: str) -> str:
    """Return the name of the index of shards that replace a single file of weights."""
    return f"{single}.index.json"


def read_shards(folder: SourceFolder, index: str) -> list[str]:
    """Read the names of the shards in an index; they need not exist.

    Raises:
        RunError: the index is damaged, or names files elsewhere.
    """
    where, suffix = str(folder.path / index), Path(index.removesuffix(".index.json")).suffix
    names = folder.read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise RunError(f"{index} has no table weight_map of tensors and files", where=where, hint=HINT)
    shards = sorted(set(names.values()))
    if len(shards) > MAX_SHARDS:
        raise RunError(f"{index} names {len(shards):,} files, more than {MAX_SHARDS:,}", where=where, hint=HINT)
    if wrong := [name for name in shards if not _PLAIN_NAME.fullmatch(name) or not name.endswith(suffix)]:
        found = f"{index} names {wrong[0][:100]!r}, which is not a {suffix} file of the folder"
        raise RunError(found, where=where, hint="use a folder whose files you trust")
    return shards
