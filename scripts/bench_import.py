"""Measure the import of GPT-2 124M against reading its weights, and against a durable copy of them.

    python scripts/bench_import.py [--repeats 3]

The weights are random. An import reads them twice, for the SHA-256 of the source and to convert them, and writes them
once, with a SHA-256 and an fsync. The copy does the same work without nanolm: read, hash twice, write, fsync.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

import nanolm
from nanolm.compose import compose_command
from nanolm.interop.architectures import ARCHITECTURES
from nanolm.interop.tensors import ENTRIES

BLOCK = 1 << 24
VOCAB_SIZE = 50257


def make_model(folder: Path) -> None:
    """Write a folder in the Hugging Face format with random weights and a byte vocabulary."""
    config = compose_command(["model=gpt2", "size=gpt2"]).config
    name = "GPT2LMHeadModel"
    settings = {"architectures": [name], **ARCHITECTURES[name].to_json(config, VOCAB_SIZE)}
    parts = [(entry, part) for entry in ENTRIES[name](config, VOCAB_SIZE) for part in entry.parts]
    generator = torch.Generator().manual_seed(0)
    weights = {part.name: torch.randn(entry.shape_of(part), generator=generator) for entry, part in parts}
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings))
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({chr(0x100 + n): n for n in range(256)}, [])).save(str(folder / "tokenizer.json"))


def read(path: Path) -> None:
    """Read a file."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(BLOCK)
        while file.readinto(buffer):
            pass


def copy(path: Path, target: Path) -> None:
    """Copy a file durably, with a checksum of what was read and of what was written."""
    checksums = [hashlib.sha256(), hashlib.sha256()]
    with path.open("rb", buffering=0) as file, target.open("wb", buffering=0) as written:
        while block := file.read(BLOCK):
            for checksum in checksums:
                checksum.update(block)
            written.write(block)
        os.fsync(written.fileno())
    target.unlink()


def seconds(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    """Print the ratios of paired measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, weights = folder / "model", folder / "model" / "model.safetensors"
        make_model(model)
        megabytes = weights.stat().st_size / 2**20
        print(f"GPT-2 124M, {megabytes:.0f} MiB, Python {sys.version.split()[0]}, torch {torch.__version__}")
        nanolm.import_model(model, folder / "warm up")
        found = []
        for repeat in range(repeats):
            os.sync()
            imported = seconds(lambda to=folder / f"run{repeat}": nanolm.import_model(model, to))
            os.sync()
            found.append((imported, seconds(lambda: read(weights)), seconds(lambda: copy(weights, folder / "copy"))))
        for label, at in (("reading the file (cached)", 1), ("a durable, checksummed copy", 2)):
            ratios = [row[0] / row[at] for row in found]
            spread = f"({min(ratios):.1f} to {max(ratios):.1f})"
            print(f"  import against {label:<28} {statistics.median(ratios):.1f}x {spread}")


if __name__ == "__main__":
    main()
