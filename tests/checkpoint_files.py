"""Checkpoints made and altered by hand, with checksums that match, for tests of what reads them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanolm.checksummed import MANIFEST
from nanolm.json_text import dump_json

# The entries that every manifest has.
EMPTY_LOG = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
FACTS: dict[str, Any] = {
    "best_step": 0,
    "val_loss": None,
    "settings": {},
    "logs": {"metrics.jsonl": EMPTY_LOG, "samples.jsonl": EMPTY_LOG},
}


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Alter a manifest and compute the checksums again: of the files that it names, and its own."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest.pop("sha256")
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(manifest)
    sha256 = hashlib.sha256(dump_json(manifest, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(dump_json({**manifest, "sha256": sha256}, indent=2) + "\n")


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint, and compute the checksums again."""
    (folder / name).write_bytes(content)
    change_manifest(folder, lambda manifest: None)


def read_safetensors(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file and the bytes of its tensors."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def change_header(folder: Path, name: str, change: Callable[[dict[str, Any]], Any], more: bytes = b"") -> None:
    """Alter the header of a safetensors file, append bytes to its tensors, and compute the checksums again."""
    header, tensors = read_safetensors(folder / name)
    change(header)
    content = json.dumps(header).encode()
    replace_file(folder, name, struct.pack("<Q", len(content)) + content + tensors + more)


def plain_state(node: dict[str, Any]) -> Any:
    """Return a structure of `flatten` with dicts, which can be altered by key; tensors and values stay nodes."""
    ((kind, content),) = node.items()
    if kind == "dict":
        return {key: plain_state(value) for key, value in content}
    return {"list": [plain_state(item) for item in content]} if kind in ("list", "tuple") else node


def change_state(folder: Path, change: Callable[[Any], Any]) -> None:
    """Alter state.json and compute the checksums again.

    Args:
        folder: of the checkpoint.
        change: called with the structure as `plain_state` returns it.
    """
    state = plain_state(json.loads((folder / "state.json").read_bytes()))
    change(state)
    replace_file(folder, "state.json", json.dumps(_structure(state)).encode())


def _structure(state: Any) -> Any:
    if not isinstance(state, dict) or state.keys() & {"tensor", "value", "float"}:
        return state
    if "list" in state:
        return {"list": [_structure(item) for item in state["list"]]}
    return {"dict": [[key, _structure(value)] for key, value in state.items()]}
