"""A run as Weights & Biases shows it: where its names, its steps and its reference lines are decided, live or later."""

from __future__ import annotations

import netrc
import os
import secrets
import shutil
import threading
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanolm.config.logger import WandbConfig
from nanolm.config.wandb_environment import destination
from nanolm.json_text import finite
from nanolm.runs import metrics
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import VAL, MetricsRow
from nanolm.runs.summary import Summary, to_json

if TYPE_CHECKING:
    import wandb

# How a run may end that has not gone wrong.
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
    """Opens the record of a run directory, apart from any other that this process has open.

    Args:
        settings: project, entity, group, tags, and how long to wait for the server; what they leave open is taken from
            the WANDB_ variables.
        config: the run's settings by dotted key.
        mode: what wandb calls online, offline or disabled.
        run_id: of a record that is there already; None for a new one.
        is_live: whether the run is being trained here: its record is then added to, and says of the machine what it
            finds; one that is written later begins anew.
        group: what the run is one of, where the settings name nothing.

    Raises:
        wandb.Error: the server cannot be reached, does not answer, or refuses.
    """
    import wandb

    goal = destination(settings)
    return wandb.init(
        project=goal.project,
        entity=goal.entity,
        group=goal.group or group,
        tags=goal.tags or None,
        # A name in the environment is one run's: the jobs of a sweep have names of their own.
        name=(os.environ.get("WANDB_NAME") if group is None else None) or run.path.resolve().name,
        notes=os.environ.get("WANDB_NOTES"),
        job_type=os.environ.get("WANDB_JOB_TYPE"),
        id=run_id or _new_id(group),
        resume="allow" if is_live else None,
        dir=_folder(run.wandb),
        config=finite(config),
        mode=mode,  # type: ignore[arg-type]
        # What an earlier run of this process left open is not ours to go on with.
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
    """The reference lines of a summary under wandb's names: nats a token like val/loss, or bits per byte by name."""
    return {f"baseline/{name}": loss for name, loss in summary.baseline_losses.items()} | {
        f"baseline/{name}_bits_per_byte": value for name, value in summary.baseline_bits_per_byte.items()
    }


def values(row: MetricsRow, references: dict[str, float]) -> dict[str, Any]:
    """A row of metrics.jsonl under its split's name: train/loss, val/bits_per_byte, ...

    The reference lines come with every row of val, so that a chart has them as lines of their own beside val/loss.
    """
    named = {
        f"{row.split}/{key}": value
        for key, value in finite(metrics.to_json(row)).items()
        if key not in ("split", "step") and value is not None
    }
    return named | references if row.split == VAL else named


def end(record: wandb.Run, run: RunDirectory, summary: Summary, patience: float) -> None:
    """Adds the run's samples and its summary, and closes the record; online, when the server has everything.

    Raises:
        TimeoutError: the server has not taken everything in `patience` seconds.
        wandb.Error: the record is closed already, or the server refuses.
    """
    errors: list[Exception] = []

    def finish() -> None:
        try:
            if run.samples.exists():
                # Not there yet, it may be: the service makes it in its own time.
                Path(record.dir).mkdir(parents=True, exist_ok=True)
                copy = shutil.copy(run.samples, record.dir)
                record.save(copy, base_path=record.dir, policy="now")
            for key, value in to_json(summary).items():
                record.summary[key] = value
            record.finish(exit_code=0 if summary.status in ENDED_WELL else 1)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=finish, daemon=True)
    thread.start()
    thread.join(patience)
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError(f"the server has not taken everything in {patience:.0f} s")


def has_account() -> bool:
    """Whether an API key is at hand, in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if name and netrc.netrc(Path(name).expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _new_id(group: str | None) -> str:
    """WANDB_RUN_ID stands for one run: the jobs of a sweep have ids of their own, whatever it says.

    Never left to wandb, which goes on with what the environment said when this process first asked.
    """
    return (os.environ.get("WANDB_RUN_ID") if group is None else None) or secrets.token_hex(4)


def _folder(path: Path) -> str:
    """wandb makes its own folder `wandb` in the one it is given, which must exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path.parent.resolve())
