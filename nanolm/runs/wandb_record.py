"""The wandb record of a run, logged live or pushed later."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import logging
import os
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanolm.config.logger import WandbConfig
from nanolm.config.wandb_environment import destination, refusal
from nanolm.errors import RunError
from nanolm.json_text import finite
from nanolm.runs import privacy
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import VAL, MetricsRow
from nanolm.runs.summary import FINISHED, Summary
from nanolm.untrusted import damaged, read_inside, unreadable

if TYPE_CHECKING:
    import wandb

# Statuses of runs that wandb shows as finished, not failed.
ENDED_WELL = (*FINISHED, "interrupted", "pruned")

# Samples of thousands of evaluations.
MAX_SAMPLE_BYTES = 64_000_000


def begin(
    settings: WandbConfig,
    run: RunDirectory,
    config: dict[str, Any],
    *,
    mode: str,
    run_id: str | None,
    is_live: bool,
    group: str | None,
    name: str | None = None,
    job_type: str | None = None,
) -> wandb.Run:
    """Start the wandb record of a run directory; other records may be open in this process.

    Args:
        settings: project, entity, group, tags, the timeout, and whether the record is private; names that are unset
            are taken from the WANDB_ variables.
        config: the run's settings by dotted key.
        mode: online, offline or disabled.
        run_id: id of an existing record to continue; None creates one.
        is_live: whether the run is being trained in this process. A live record is resumed and has machine
            information; one that is pushed later is written from the start.
        group: used if neither the settings nor the environment name a group.
        name: of the record; None: WANDB_NAME, else the name of the folder.
        job_type: None: WANDB_JOB_TYPE.

    Raises:
        RunError: the record cannot be continued, because its id or its folder is not as wandb writes them.
        wandb.Error: the server cannot be reached, does not answer, or refuses.
    """
    import wandb

    load_settings()
    if run_id is not None:
        _check_continued(run, run_id)
    if settings.private:
        # Its debug.log names folders.
        logging.getLogger("wandb").setLevel(logging.WARNING)
    hidden = {"host": os.environ.get("WANDB_HOST", ""), "program": "nanolm", "disable_git": True}
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
        name=name or environment.get("WANDB_NAME") or run.path.resolve().name,
        notes=os.environ.get("WANDB_NOTES"),
        job_type=job_type or os.environ.get("WANDB_JOB_TYPE"),
        id=run_id or environment.get("WANDB_RUN_ID") or secrets.token_hex(4),
        resume="allow" if is_live else None,
        dir=str(run.path.resolve()),
        config=_shared(config, settings),
        mode=mode,  # type: ignore[arg-type]
        # Do not continue a record that an earlier run of this process left open.
        reinit="create_new",
        settings=wandb.Settings(
            init_timeout=settings.init_timeout,
            console="off",
            silent=True,
            quiet=True,
            x_disable_stats=True,
            x_disable_machine_info=settings.private or not is_live,
            use_dot_wandb=False,
            **(hidden if settings.private else {}),
        ),
    )


def baselines(summary: Summary) -> dict[str, float]:
    """The baselines of a summary under their names in wandb, in nats per token or, by name, in bits per byte."""
    return {f"baseline/{name}": loss for name, loss in summary.baseline_losses.items()} | {
        f"baseline/{name}_bits_per_byte": value for name, value in summary.baseline_bits_per_byte.items()
    }


def values(row: MetricsRow, baseline_values: dict[str, float]) -> dict[str, Any]:
    """A row of metrics.jsonl under its names in wandb: train/loss, val/bits_per_byte, val/loss_estimate, ...

    The baselines are added to every validation row, so that wandb plots them as lines next to val/loss.
    """
    estimated = () if row.scored_tokens is None else ("loss", "ema_loss", "bits_per_byte")
    named = {
        f"{row.split}/{key}{'_estimate' * (key in estimated)}": value
        for key, value in finite(dataclasses.asdict(row)).items()
        if key not in ("split", "step") and value is not None
    }
    return named | baseline_values if row.split == VAL else named


def read_samples(run: RunDirectory) -> bytes:
    """Read samples.jsonl; empty where there is none.

    Raises:
        RunError: it is no regular file of the run, cannot be read, or is too large to be sent.
    """
    try:
        return read_inside(run.samples, run.path, MAX_SAMPLE_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise unreadable(run.samples, error) from error


def end(record: wandb.Run, samples: bytes, summary: Summary, settings: WandbConfig, timeout: float) -> None:
    """Add the samples and the summary of a run to its record and finish it, as `finish` does."""
    exit_code = 0 if summary.status in ENDED_WELL else 1
    finish(record, dataclasses.asdict(summary), settings, timeout, samples=samples, exit_code=exit_code)


def finish(
    record: wandb.Run,
    summary: dict[str, Any],
    settings: WandbConfig,
    timeout: float,
    *,
    samples: bytes = b"",
    exit_code: int = 0,
) -> None:
    """Add values to the summary of the record and finish it; online, wait until everything is uploaded.

    Args:
        timeout: seconds to wait for the server.
        samples: content of samples.jsonl.

    Raises:
        TimeoutError: uploading took longer.
        wandb.Error: the record is finished already, or the server refuses.
    """
    errors: list[Exception] = []

    def upload() -> None:
        try:
            if samples:
                # The wandb service creates the folder asynchronously.
                folder = Path(record.dir)
                folder.mkdir(parents=True, exist_ok=True)
                copy = folder / "samples.jsonl"
                copy.write_bytes(samples)
                record.save(str(copy), base_path=record.dir, policy="now")
            for key, value in _shared(summary, settings).items():
                record.summary[key] = value
            record.finish(exit_code=exit_code)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=upload, daemon=True)
    thread.start()
    thread.join(timeout)
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError(f"the server has not taken everything in {timeout:.0f} s")


def load_settings() -> wandb.Settings:
    """Load wandb's settings from the environment and the user's settings file; later calls return the same.

    wandb would also read wandb/settings in the current folder. That file may be part of a downloaded run, and could
    name another server, which would then be sent the API key.
    """
    import wandb

    name = "settings_workspace"
    path = getattr(wandb.Settings, name)
    setattr(wandb.Settings, name, property(lambda settings: os.devnull))
    try:
        return wandb.setup().settings
    finally:
        setattr(wandb.Settings, name, path)


def server_errors() -> tuple[type[Exception], ...]:
    """The exceptions of a server that does not answer or refuses, as far as wandb tells them apart."""
    import wandb

    return (wandb.Error, OSError)


def has_account() -> bool:
    """Return whether there is an API key, in the environment or in the netrc file that `wandb login` writes."""
    import requests

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(server))


def _shared(table: dict[str, Any], settings: WandbConfig) -> dict[str, Any]:
    """Return settings or a summary as they are recorded."""
    shared: dict[str, Any] = (privacy.private if settings.private else privacy.plain)(finite(table))
    return shared


def _check_continued(run: RunDirectory, run_id: str) -> None:
    """Refuse to continue a record whose id wandb does not accept, or whose folder leads elsewhere."""
    hint = "correct wandb_id, or remove it: a new wandb run is then created"
    if problem := refusal("run id", run_id):
        raise damaged(run.summary, problem, hint)
    # wandb names a folder by the time and the id, and writes into one that exists.
    for folder in run.wandb.glob(f"*-{glob.escape(run_id)}"):
        with contextlib.suppress(OSError):
            links = [path for path in (folder, *folder.iterdir()) if path.is_symlink()]
            if links:
                raise RunError(f"{links[0]} is a link, which is not followed", where=str(links[0]), hint="remove it")
