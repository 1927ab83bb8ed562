"""Check a run directory before training continues in it: every file must belong to the run and to its checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nanolm import shell
from nanolm.config.fields import Trait
from nanolm.config.identity import identity, may_change, recorded
from nanolm.config.roles import has_trait
from nanolm.config.run import Config
from nanolm.errors import CheckpointError, RunError
from nanolm.files import hash_prefix
from nanolm.json_text import dump_json
from nanolm.runs.directory import RunDirectory
from nanolm.runs.occupancy import require_inputs_outside, require_nothing_overwritten
from nanolm.runs.samples import read_samples
from nanolm.runs.summary import Summary
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.files import Checkpoint


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What a run directory says besides the checkpoint that training continues from.

    Attributes:
        file_offsets: bytes to keep of metrics.jsonl and of the samples; later content is cut off.
        notes: what to tell the user about the files.
        changes: recorded settings that differ from those of the checkpoint, with the old and the new value.
    """

    file_offsets: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    changes: dict[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)


def check_run(
    config: Config, run: RunDirectory, resumed: Checkpoint | None, damaged: list[CheckpointError]
) -> Continuation:
    """Check that training with these settings may begin or continue in a run directory. Nothing is written.

    Args:
        config: checked settings.
        run: empty, or the run to continue.
        resumed: its newest intact checkpoint; None where there is none.
        damaged: what is wrong with newer checkpoints.

    Raises:
        RunError: a file of the run is missing, shorter or other than the checkpoint recorded, was made with other
            settings; or a file that is not a run's would be overwritten.
        SettingsError: the settings read a file that the run would overwrite.
    """
    require_nothing_overwritten(run)
    require_inputs_outside(config, run)
    summary = run.read_summary()
    if resumed is None:
        return Continuation(notes=_check_fresh_start(config, run, summary))
    require_same_settings(config, run, resumed.manifest, resumed.path)
    if run.exists():
        _require_all_settings(run, resumed)
    _require_own_summary(config, run, summary, resumed)
    continuation = Continuation(changes=differences(config, resumed.manifest))
    if not run.summary.exists():
        continuation.notes.append(
            "summary.json is missing and is written again; its wandb run and the parent of a fork are unknown now"
        )
    if summary.steps_done > resumed.step and not damaged:
        continuation.notes.append(
            f"summary.json counts {summary.steps_done:,} steps, and the newest checkpoint is of step {resumed.step:,}: "
            "the steps between are trained again"
        )
    _check_growing_files(config, run, resumed, continuation)
    return continuation


def require_same_settings(
    config: Config, run: RunDirectory, manifest: Mapping[str, Any], path: Path, trait: Trait | None = None
) -> None:
    """Refuse settings that are not those a checkpoint was trained with.

    Args:
        manifest: of the checkpoint at `path`.
        trait: compare only settings with this trait; None compares all.

    Raises:
        RunError: with the old and the new value of each.
    """
    has_config = run.exists()
    where = f"{run.config if has_config else run.path}, compared with {path / checkpoint.MANIFEST}"
    if has_config:
        what = "config.yaml has changed since the run was trained"
    else:
        what = "the run was trained with other settings"
    lost = "repeat those settings, or take config.yaml from a copy of the run; a new run needs another hydra.run.dir="
    apart = {
        key: values
        for key, values in differences(config, manifest).items()
        if not may_change(key, config) and (trait is None or has_trait(key, trait))
    }
    if apart:
        raise RunError(
            f"{what}: " + "; ".join(f"{key}: {_shown(old)} -> {_shown(new)}" for key, (old, new) in apart.items()),
            where=where,
            hint="restore the old values; to train with the new ones, give them on the command line with "
            f"{shell.resume_command(run.path)} fork=true, which begins a new run from these weights"
            if has_config
            else lost,
        )
    # Checkpoints of earlier versions of nanolm have the hash alone.
    if "settings" not in manifest and manifest.get("identity") != identity(config) and trait is None:
        raise RunError(
            f"{what}: the hash of the settings is not the one in the checkpoint",
            where=where,
            hint="restore config.yaml from a copy of the run, or start a new run" if has_config else lost,
        )


def differences(config: Config, manifest: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The recorded settings that are not as a manifest has them, with the old and the new value.

    A setting that only one of them has belongs to another version of nanolm, or to another option, whose name differs.
    """
    saved = manifest.get("settings") or {}
    here = json.loads(dump_json(recorded(config)))
    return {key: (saved[key], here[key]) for key in saved if key in here and saved[key] != here[key]}


def require_unedited(config: Config, run: RunDirectory) -> None:
    """Refuse a config.yaml whose settings are not those that the run was trained with. Only manifests are read.

    Args:
        config: the settings in the run's config.yaml.

    Raises:
        RunError: with the old and the new values, where a checkpoint has the old ones.
    """
    for path in reversed(checkpoint.folders(run.checkpoints)):
        manifest = checkpoint.read_manifest(path)
        if manifest is not None:
            require_same_settings(config, run, manifest, path)
            return
    if run.read_summary().identity not in (None, identity(config)):
        raise _edited(run)


def _check_fresh_start(config: Config, run: RunDirectory, summary: Summary) -> list[str]:
    """A run without checkpoints begins at step 0, unless steps were made whose checkpoints are gone.

    Returns:
        What to tell the user.

    Raises:
        RunError: steps were saved, or config.yaml is not the one that the run began with.
    """
    rows, samples = run.read_metrics(), read_samples(run.samples)
    last_row = max([0, *(row.step for row in rows[-1:]), *(sample.step for sample in samples[-1:])])
    # The second save waits for the first: later rows prove that there was a checkpoint.
    settings = config.trainer
    first = min(settings.save_every, settings.eval_every)
    was_saved = summary.has_checkpoint
    if was_saved is None:
        was_saved = bool(summary.step or last_row or _has_content(run.samples))
    if was_saved or last_row > first + settings.save_every:
        steps = max(summary.steps_done, last_row)
        raise RunError(
            f"the run has no checkpoint left, and {steps:,} steps were made"
            if steps
            else "the run has no checkpoint left, and its samples.jsonl is not empty",
            where=str(run.checkpoints),
            hint="take the folder checkpoints from a copy of the run; to train again from step 0, name a new "
            f"hydra.run.dir=, or move {run.path} away first",
        )
    if run.exists() and summary.identity not in (None, identity(config)):
        raise _edited(run)
    if last_row:
        return [f"the run ended behind step {last_row:,} and before its first save: it starts at step 0 again"]
    return []


def _edited(run: RunDirectory) -> RunError:
    return RunError(
        "config.yaml has changed since the run began: its settings have another hash than summary.json has",
        where=str(run.config),
        hint="take config.yaml and summary.json from the same copy of the run, or start a new run",
    )


def _require_all_settings(run: RunDirectory, resumed: Checkpoint) -> None:
    """Refuse a config.yaml that was cut short: what it lacks would silently take its default.

    Raises:
        RunError: with the settings that it lacks.
    """
    written = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    lacking = [key for key in resumed.manifest.get("settings", {}) if not _has(written, key.split("."))]
    if lacking:
        raise RunError(
            f"config.yaml is cut short: it lacks {', '.join(lacking[:5])}" + (" and others" if lacking[5:] else ""),
            where=str(run.config),
            hint="take it from a copy of the run",
        )


def _require_own_summary(config: Config, run: RunDirectory, summary: Summary, resumed: Checkpoint) -> None:
    """Refuse a summary.json of another run.

    Raises:
        RunError: neither these settings nor the checkpoint has its identity.
    """
    if summary.identity not in (None, identity(config), resumed.manifest.get("identity")):
        raise RunError(
            "summary.json belongs to a run with other settings",
            where=str(run.summary),
            hint="take it from a copy of this run, or delete it: it is written again",
        )


def _check_growing_files(config: Config, run: RunDirectory, resumed: Checkpoint, continuation: Continuation) -> None:
    """Compare the files that grow with a run with what the checkpoint recorded of them.

    Raises:
        RunError: metrics.jsonl is missing, shorter or other than it was.
    """
    for path in (run.metrics, run.samples):
        recorded_file = resumed.manifest["logs"][path.name]
        continuation.file_offsets[path.name] = recorded_file["bytes"]
        problem = _problem_of(path, recorded_file["bytes"], recorded_file["sha256"])
        if problem is None:
            continue
        if path == run.metrics:
            raise RunError(
                f"metrics.jsonl {problem}",
                where=str(path),
                hint="take it from a copy of the run; without it, a new run can begin from these weights: "
                + shell.resume_command(run.path, "fork=true", f"trainer.max_steps={config.trainer.max_steps}"),
            )
        continuation.file_offsets[path.name] = path.stat().st_size if path.exists() else 0
        continuation.notes.append(f"{path.name} {problem}: later samples are added to what is there")


def _problem_of(path: Path, length: int, checksum: str | None) -> str | None:
    """What is wrong with the first `length` bytes of a file, or None."""
    if not length:
        return None
    if not path.exists():
        return f"is missing; it had {length:,} bytes at the checkpoint"
    size = path.stat().st_size
    if size < length:
        return f"has {size:,} bytes, and had {length:,} at the checkpoint"
    if checksum is not None and hash_prefix(path, length).hexdigest() != checksum:
        return f"is not the file of this run: its first {length:,} bytes have changed since the checkpoint"
    return None


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _has(tree: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else dump_json(value)
