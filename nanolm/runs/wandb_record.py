"""The wandb record of a run, logged live or pushed later."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanolm.config.logger import WandbConfig
from nanolm.config.wandb_environment import destination
from nanolm.json_text import finite
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import VAL, MetricsRow
from nanolm.runs.summary import Summary

if TYPE_CHECKING:
    import wandb

# Statuses of runs that wandb shows as finished, not failed.
ENDED_WELL = ("completed", "interrupted", "pruned")


def begin(
    settings: WandbConfig,
    run: RunDirectory,
    config: dict[str, Any],
    *,
    mode: str,
    run_id: str | None,
    is_live: bool,
    group: str | None,
) -> wandb.Run:
    """Start the wandb record of a run directory; other records may be open in this process.

    Args:
        settings: project, entity, group, tags and the timeout; unset ones are taken from the WANDB_ variables.
        config: the run's settings by dotted key.
        mode: online, offline or disabled.
        run_id: id of an existing record to continue; None creates one.
        is_live: whether the run is being trained in this process. A live record is resumed and has machine
            information; one that is pushed later is written from the start.
        group: used if neither the settings nor the environment name a group.

    Raises:
        wandb.Error: the server cannot be reached, does not answer, or refuses.
    """
    import wandb

    goal = destination(settings)
    # WANDB_NAME and WANDB_RUN_ID are of one run, so they are ignored for jobs of a sweep. wandb caches the environment.
    environment = os.environ if group is None else {}
    # wandb creates its folder `wandb` in this one.
    run.path.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=goal.project,
        entity=goal.entity,
        group=goal.group or group,
        tags=goal.tags or None,
        name=environment.get("WANDB_NAME") or run.path.resolve().name,
        notes=os.environ.get("WANDB_NOTES"),
        job_type=os.environ.get("WANDB_JOB_TYPE"),
        id=run_id or environment.get("WANDB_RUN_ID") or secrets.token_hex(4),
        resume="allow" if is_live else None,
        dir=str(run.path.resolve()),
        config=finite(config),
        mode=mode,  # type: ignore[arg-type]
        # Do not continue a record that an earlier run of this process left open.
        reinit="create_new",
        settings=wandb.Settings(
            init_timeout=settings.init_timeout,
            console="off",
            silent=True,
            quiet=True,
            x_disable_stats=True,
            x_disable_machine_info=not is_live,
        ),
    )


def baselines(summary: Summary) -> dict[str, float]:
    """The baselines of a summary under their names in wandb, in nats per token or, by name, in bits per byte."""
    return {f"baseline/{name}": loss for name, loss in summary.baseline_losses.items()} | {
        f"baseline/{name}_bits_per_byte": value for name, value in summary.baseline_bits_per_byte.items()
    }


def values(row: MetricsRow, baseline_values: dict[str, float]) -> dict[str, Any]:
    """A row of metrics.jsonl under its names in wandb: train/loss, val/bits_per_byte, ...

    The baselines are added to every validation row, so that wandb plots them as lines next to val/loss.
    """
    named = {
        f"{row.split}/{key}": value
        for key, value in finite(dataclasses.asdict(row)).items()
        if key not in ("split", "step") and value is not None
    }
    return named | baseline_values if row.split == VAL else named


def end(record: wandb.Run, run: RunDirectory, summary: Summary, timeout: float) -> None:
    """Add the samples and the summary to the record and finish it; online, wait until everything is uploaded.

    Raises:
        TimeoutError: uploading took longer than `timeout` seconds.
        wandb.Error: the record is finished already, or the server refuses.
    """
    errors: list[Exception] = []

    def finish() -> None:
        try:
            if run.samples.exists():
                # The wandb service creates the folder asynchronously.
                Path(record.dir).mkdir(parents=True, exist_ok=True)
                copy = shutil.copy(run.samples, record.dir)
                record.save(copy, base_path=record.dir, policy="now")
            for key, value in dataclasses.asdict(summary).items():
                record.summary[key] = value
            record.finish(exit_code=0 if summary.status in ENDED_WELL else 1)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=finish, daemon=True)
    thread.start()
    thread.join(timeout)
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError(f"the server has not taken everything in {timeout:.0f} s")


def has_account() -> bool:
    """Return whether there is an API key, in the environment or in the netrc file that `wandb login` writes."""
    import requests

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(server))
