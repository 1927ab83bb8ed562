"""A run as Weights & Biases shows it: where its names, its steps and its reference lines are decided, live or later."""

from __future__ import annotations

import netrc
import os
import secrets
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanolm.config import WandbConfig
from nanolm.runs.directory import RunDirectory

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
    resume: str | None,
    group: str | None,
) -> wandb.Run:
    """Opens the record of a run directory, apart from any other that this process has open.

    Args:
        settings: project, entity, group, tags, and how long to wait for the server.
        config: the run's settings by dotted key.
        mode: what wandb calls online, offline or disabled.
        run_id: of a record that is there already; None for a new one.
        resume: as wandb has it: "allow" adds to the record of that id, None begins it anew.
        group: what the run is one of, where the settings name nothing.

    Raises:
        wandb.Error: the server cannot be reached, does not answer, or refuses.
    """
    import wandb

    return wandb.init(
        project=settings.project,
        entity=settings.entity,
        group=settings.group or group,
        tags=settings.tags or None,
        name=run.path.resolve().name,
        # WANDB_RUN_ID stands for one run: the jobs of a sweep have ids of their own whatever it says.
        id=run_id or (secrets.token_hex(4) if group else None),
        resume=resume,  # type: ignore[arg-type]
        dir=_folder(run.wandb),
        config=config,
        mode=mode,  # type: ignore[arg-type]
        # What an earlier run of this process left open is not ours to go on with.
        reinit="create_new",
        settings=wandb.Settings(
            init_timeout=settings.patience,
            console="off",
            silent=True,
            quiet=True,
            x_disable_stats=True,
        ),
    )


def values(row: dict[str, Any], references: dict[str, float]) -> dict[str, Any]:
    """A row of metrics.jsonl under its split's name: train/loss, val/bits_per_byte, ...

    Each reference line comes with every row of val, so that a chart has it as a line of its own beside val/loss.
    """
    named = {f"{row['split']}/{key}": value for key, value in row.items() if key not in ("split", "step")}
    if row["split"] == "val":
        named |= {f"reference/{name}": loss for name, loss in references.items()}
    return named


def end(record: wandb.Run, summary: dict[str, Any]) -> None:
    """Fills the record's summary and closes it; online, returns when the server has everything."""
    for key, value in summary.items():
        record.summary[key] = value
    record.finish(exit_code=0 if summary.get("status") in ENDED_WELL else 1)


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


def _folder(path: Path) -> str:
    """wandb makes its own folder `wandb` in the one it is given, which must exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path.parent.resolve())
