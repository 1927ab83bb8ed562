"""Checks of a run directory before a run starts or resumes in it: all files must belong to the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanolm import shell
from nanolm.config.budget import budget_of
from nanolm.config.fields import Trait
from nanolm.config.identity import describe_changes, identity, recorded
from nanolm.config.roles import has_trait, is_resumable
from nanolm.config.run import Config
from nanolm.config.yaml_io import has_key
from nanolm.errors import CheckpointError, RunError
from nanolm.files import hash_prefix
from nanolm.json_text import dump_json
from nanolm.run_layout import checkpoints_by_step
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import read_last_row
from nanolm.runs.occupancy import require_inputs_outside, require_nothing_overwritten
from nanolm.runs.samples import read_samples
from nanolm.runs.summary import Summary
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.checkpoint import Checkpoint
from nanolm.training.checkpoints.fork import Parent
from nanolm.training.checkpoints.manifest import max_steps_of, read_manifest
from nanolm.untrusted import read_yaml


@dataclasses.dataclass(frozen=True)
class ResumeInfo:
    """Results of the checks.

    Attributes:
        file_offsets: bytes to keep of metrics.jsonl and of the samples; later content is truncated.
        notes: messages to the user about the files.
        changes: settings that differ from those of the checkpoint, with the old and the new value.
        max_steps: number of steps of the run at the checkpoint; None if there is none.
    """

    file_offsets: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    changes: dict[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    max_steps: int | None = None


def check_run(
    config: Config,
    run: RunDirectory,
    resumed: Checkpoint | None,
    damaged: list[CheckpointError],
    hashes: dict[str, hashlib._Hash],
) -> ResumeInfo:
    """Check that a run can start or resume in a directory with these settings. Nothing is written.

    Args:
        run: an empty directory, or the run to resume.
        resumed: its newest intact checkpoint; None if there is none.
        damaged: an error for each newer checkpoint.
        hashes: receives the SHA-256 of the rows to keep, by file name; it is continued with the next rows.

    Raises:
        RunError: a file of the run is missing, truncated, altered or of another run, or the run would overwrite a
            file that does not belong to it.
        SettingsError: the run would overwrite a file that its settings read.
    """
    require_nothing_overwritten(run)
    require_inputs_outside(config, run)
    summary = run.read_summary()
    if resumed is None:
        return ResumeInfo(notes=_check_fresh_start(config, run, summary))
    require_same_settings(config, run, resumed.manifest, resumed.path)
    if run.exists():
        _require_all_settings(run, resumed)
    if summary.identity not in (None, identity(config), resumed.manifest.get("identity")):
        raise RunError(
            "summary.json belongs to a run with other settings",
            where=str(run.summary),
            hint="restore it from a copy of this run, or delete it: it is rewritten",
        )
    info = ResumeInfo(changes=changed_settings(config, resumed.manifest), max_steps=max_steps_of(resumed.manifest))
    if not run.summary.exists():
        info.notes.append("summary.json is missing and is rewritten; its wandb run and the parent of a fork are lost")
    if summary.steps_done > resumed.step and not damaged:
        info.notes.append(
            f"summary.json has {summary.steps_done:,} steps, and the newest checkpoint is of step {resumed.step:,}: "
            "the steps in between are repeated"
        )
    _check_logs(config, run, resumed, info, hashes)
    return info


def require_same_settings(
    config: Config, run: RunDirectory, manifest: Mapping[str, Any], path: Path, trait: Trait | None = None
) -> None:
    """Refuse settings other than those of a checkpoint.

    Args:
        manifest: of the checkpoint at `path`.
        trait: compare only settings with this trait; None compares all.

    Raises:
        RunError: names each setting with the old and the new value.
    """
    changed = {
        key: values
        for key, values in changed_settings(config, manifest).items()
        if not is_resumable(key, config.scheduler.name) and (trait is None or has_trait(key, trait))
    }
    if not changed:
        return
    described, compared = "; ".join(describe_changes(changed)), f"compared with {path / checkpoint.MANIFEST}"
    if run.exists():
        raise RunError(
            f"config.yaml has changed since the run was trained: {described}",
            where=f"{run.config}, {compared}",
            hint="restore the old values; to train with the new ones, add them to the command "
            f"{shell.resume_command(run.path)} fork=true, which starts a new run from these weights",
        )
    raise RunError(
        f"the run was trained with other settings: {described}",
        where=f"{run.path}, {compared}",
        hint="repeat those settings, or restore config.yaml from a copy of the run; a new run needs another "
        "hydra.run.dir=",
    )


def changed_settings(config: Config, manifest: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from those in a manifest, with the old and the new value.

    Settings of one side only are ignored: they belong to different options of a group, whose names differ as well.
    """
    old, new = manifest["settings"], json.loads(dump_json(recorded(config)))
    return {key: (old[key], new[key]) for key in old if key in new and old[key] != new[key]}


def require_unedited(config: Config, run: RunDirectory) -> None:
    """Refuse a config.yaml that was edited after training, by the manifest of the newest checkpoint.

    Raises:
        RunError: names the old and the new values, if a checkpoint has the old ones.
    """
    for path in reversed(checkpoints_by_step(run.checkpoints).values()):
        manifest = read_manifest(path)
        if manifest is not None:
            require_same_settings(config, run, manifest, path)
            return
    _require_recorded_identity(config, run, run.read_summary())


def _check_fresh_start(config: Config, run: RunDirectory, summary: Summary) -> list[str]:
    """Check that a run without checkpoints can start again: it must not have lost its checkpoints.

    Returns:
        Messages to the user.

    Raises:
        RunError: a checkpoint was saved, or config.yaml has changed since the start of the run.
    """
    rows, samples = [read_last_row(run.metrics)], read_samples(run.samples)
    last_row = max([0, *(row.step for row in rows if row), *(sample.step for sample in samples[-1:])])
    # A save waits for the previous one: a row after the second save proves that there was a checkpoint.
    settings = config.trainer
    start = (summary.parent or {}).get("step") or 0
    first = start + min(settings.save_every, settings.eval_every)
    was_saved = summary.has_checkpoint
    if was_saved is None:
        was_saved = bool(summary.step or last_row or (run.samples.is_file() and run.samples.stat().st_size))
    if was_saved or last_row > first + settings.save_every:
        steps = max(summary.steps_done, last_row)
        raise RunError(
            f"the run has no checkpoint left, although {steps:,} steps were done"
            if steps
            else "the run has no checkpoint left, and its samples.jsonl is not empty",
            where=str(run.checkpoints),
            hint="restore the folder checkpoints from a copy of the run; to train again from step 0, choose another "
            f"hydra.run.dir=, or move {run.path} away first",
        )
    if run.exists():
        _require_recorded_identity(config, run, summary)
    if last_row:
        return [f"the run ended after step {last_row:,} and before its first checkpoint: it restarts at step 0"]
    return []


def _require_recorded_identity(config: Config, run: RunDirectory, summary: Summary) -> None:
    if summary.identity not in (None, identity(config)):
        raise RunError(
            "config.yaml has changed since the run started: the hash of its settings is not the one in summary.json",
            where=str(run.config),
            hint="restore config.yaml and summary.json from the same copy of the run, or start a new run",
        )


def _require_all_settings(run: RunDirectory, resumed: Checkpoint) -> None:
    """Refuse a truncated config.yaml, whose missing settings would silently take their defaults."""
    written = read_yaml(run.config, run.path)
    missing = [key for key in resumed.manifest["settings"] if not has_key(written, key)]
    if missing:
        raise RunError(
            f"config.yaml is truncated: {', '.join(missing[:5])}"
            + (" and others are" if missing[5:] else " is")
            + " missing",
            where=str(run.config),
            hint="restore it from a copy of the run",
        )


def _check_logs(
    config: Config, run: RunDirectory, resumed: Checkpoint, info: ResumeInfo, hashes: dict[str, hashlib._Hash]
) -> None:
    """Compare metrics.jsonl and the samples with their size and checksum in the checkpoint."""
    for path in (run.metrics, run.samples):
        log = resumed.manifest["logs"][path.name]
        info.file_offsets[path.name] = log["bytes"]
        problem = log_problem(path, log, hashes)
        if problem is None:
            continue
        if path == run.metrics:
            raise RunError(
                f"metrics.jsonl {problem}",
                where=str(path),
                hint="restore it from a copy of the run; without it, a new run can start from these weights: "
                + shell.resume_command(run.path, "fork=true", str(budget_of(config.trainer))),
            )
        info.file_offsets[path.name] = path.stat().st_size if path.exists() else 0
        info.notes.append(f"{path.name} {problem}: new samples are appended to it")


def log_problem(path: Path, log: Mapping[str, Any], hashes: dict[str, hashlib._Hash] | None = None) -> str | None:
    """Describe the damage to the rows of a file that a checkpoint covers; None if there is none.

    An altered, lost, repeated or moved row is damage. Rows after the checkpoint are not compared.

    Args:
        path: metrics.jsonl or samples.jsonl.
        log: its entry in the manifest: the length at the checkpoint and the SHA-256 of that many bytes.
        hashes: receives that SHA-256 by file name, if there is no damage.
    """
    length = log["bytes"]
    if not length:
        return None
    if not path.exists():
        return f"is missing; it had {length:,} bytes at the checkpoint"
    size = path.stat().st_size
    if size < length:
        return f"has {size:,} bytes, and had {length:,} at the checkpoint"
    found = hash_prefix(path, length)
    if found.hexdigest() != log["sha256"]:
        return f"is not the file of this run: its first {length:,} bytes have changed since the checkpoint"
    if hashes is not None:
        hashes[path.name] = found
    return None


def parent_notes(parent: Parent) -> list[str]:
    """Describe damage to the rows of the run that a fork starts from, which the fork does not read."""
    run, logs = parent.run, parent.checkpoint.manifest["logs"]
    problems = {path.name: log_problem(path, logs[path.name]) for path in (run.metrics, run.samples)}
    return [f"{name} of the parent {problem}" for name, problem in problems.items() if problem is not None]
