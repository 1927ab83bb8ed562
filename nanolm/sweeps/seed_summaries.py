"""Log the rows of seeds of a sweep to wandb, when it has ended."""

from __future__ import annotations

from collections.abc import Sequence

from nanolm import shell
from nanolm.analysis import wandb_rows
from nanolm.analysis.collection import find
from nanolm.config.logger import WandbConfig
from nanolm.config.wandb_environment import destination
from nanolm.runs import wandb_record
from nanolm.runs.loggers import reason_of
from nanolm.sweeps.planning import Job
from nanolm.terminal import say, visible


def log_seed_summaries(jobs: Sequence[Job]) -> None:
    """Log mean, standard deviation and number of seeds of each setting whose jobs are logged to wandb.

    A failure is a warning: it never changes the result of a sweep.
    """
    logged = {job.run.path: job.config.logger for job in jobs if isinstance(job.config.logger, WandbConfig)}
    logged = {path: config for path, config in logged.items() if destination(config).mode != "disabled"}
    paths = [path for path in logged if (path / "summary.json").exists()]
    if not paths:
        return
    try:
        for summary in wandb_rows.seed_summaries(find(paths)):
            config = logged[summary.run.path]
            mode = destination(config).mode
            if mode == "auto":
                mode = "online" if wandb_record.has_account() else "offline"
            place = wandb_rows.send(summary, config, mode)
            say(visible(f"wandb: {summary.name}  {place}"))
    except Exception as error:  # wandb raises many kinds
        hint = shell.join("nanolm", "wandb", "push", shell.path_argument(paths[0].parent))
        say(visible(f"wandb has no summary of the seeds: {reason_of(error)}; hint: {hint}"))
