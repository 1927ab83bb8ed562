"""The manifest of a checkpoint, and the names of the files that it lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanolm import checksummed
from nanolm.run_layout import checkpoint_step
from nanolm.training.checkpoints.values import COUNT, FINITE_OR_NULL, SHA256, TABLE, TEXT, require_table

WEIGHTS, AVERAGES = "model.safetensors", "ema.safetensors"
TENSORS, STRUCTURE = "state.safetensors", "state.json"
FILES = (WEIGHTS, AVERAGES, TENSORS, STRUCTURE)
LOGS = ("metrics.jsonl", "samples.jsonl")

# The entries of a manifest.
FACTS = {
    "step": COUNT,
    "best_step": COUNT,
    "max_steps": COUNT,
    "val_sample": COUNT,
    "val_loss": FINITE_OR_NULL,
    "settings": TABLE,
    "logs": TABLE,
    "files": TABLE,
    **dict.fromkeys(("identity", "corpus", "tokenizer", "precision"), TEXT),
    "base": SHA256,
    "versions": TABLE,
}
OPTIONAL_FACTS = ("identity", "corpus", "tokenizer", "precision", "base", "versions", "max_steps", "val_sample")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a checkpoint, or None if it is missing or damaged. No other file is read."""
    manifest = checksummed.read_manifest(path)
    return None if manifest is None or manifest_problem(path, manifest) else manifest


def max_steps_of(manifest: dict[str, Any]) -> int | None:
    """Return the number of steps of the run that a checkpoint belongs to; of an older version, that of its settings."""
    return manifest.get("max_steps", manifest["settings"].get("trainer.max_steps"))


def manifest_problem(path: Path, manifest: dict[str, Any]) -> str | None:
    """Describe what is wrong with the entries of a manifest whose checksum is right; None if nothing is."""
    run = path.parent.parent
    if (path.is_symlink() or path.parent.is_symlink()) and not path.resolve().is_relative_to(run.resolve()):
        return f"is in {path.resolve()}: links out of the run are not followed"
    if manifest.get("step") != checkpoint_step(path.name):
        return "belongs to another step"
    try:
        require_table(manifest, FACTS, optional=OPTIONAL_FACTS)
        require_table(manifest["files"], dict.fromkeys(FILES, TABLE), "files", (AVERAGES,))
        require_table(manifest["logs"], dict.fromkeys(LOGS, TABLE), "logs")
        for name, log in manifest["logs"].items():
            require_table(log, {"bytes": COUNT, "sha256": SHA256}, f"logs.{name}")
        if manifest["best_step"] > manifest["step"]:
            raise ValueError(f"best_step is {manifest['best_step']:,}, after step {manifest['step']:,}")
    except ValueError as error:
        return f"is damaged: {error}"
    return None
