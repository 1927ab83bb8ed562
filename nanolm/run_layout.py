"""File names that identify a run directory or a sweep directory."""

from __future__ import annotations

from collections.abc import Collection

CONFIG = "config.yaml"
BESIDE_CONFIG = ("summary.json", "metrics.jsonl", "tokenizer.json", ".lock")
SWEEP_JOURNAL = "study.journal"
SWEEP_LOCK = ".lock"
JOB_ERROR = "error.txt"
# What is left of a run whose config.yaml is gone, or of a job that failed before it was written.
REMAINS = (
    {"metrics.jsonl", "summary.json"},
    {"metrics.jsonl", "checkpoints"},
    {"checkpoints", "samples.jsonl"},
    {"samples.jsonl", "train.log"},
    {".lock", JOB_ERROR},
)


def is_job(names: Collection[str]) -> bool:
    """Whether these names in a folder below a sweep directory make it a job, started or failed before."""
    return JOB_ERROR in names or is_run_or_remains(names)


def is_run(names: Collection[str]) -> bool:
    """Whether these names in a folder make it a run directory, and not something else with a config.yaml."""
    return CONFIG in names and any(name in names for name in BESIDE_CONFIG)


def is_run_or_remains(names: Collection[str]) -> bool:
    """Whether these names in a folder make it a run directory, including one that lost its config.yaml."""
    return is_run(names) or any(remains.issubset(names) for remains in REMAINS)
