"""The rows of seeds of a sweep as wandb runs: mean, standard deviation and number of seeds of each metric.

wandb's own table shows no spread of a group.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanolm.analysis.collection import Run
from nanolm.analysis.comparison import Comparison, compare
from nanolm.analysis.rows import Row, averaged
from nanolm.config.logger import WandbConfig
from nanolm.runs import wandb_record
from nanolm.runs.directory import RunDirectory

# The wandb job type, by which they are distinguished from runs.
JOB_TYPE = "seeds"


@dataclasses.dataclass(frozen=True)
class SeedSummary:
    """A row of seeds as a wandb run.

    Attributes:
        run: its first run, whose wandb folder holds the record.
        name: the settings that distinguish the row, and its number of seeds.
        group: the sweep.
        run_id: the same for the same row of the same sweep, so that it is replaced when it is sent again.
        settings: those that all of its runs have, and its seeds.
        values: `METRIC/mean`, `METRIC/sd` and `METRIC/n` of every metric, and how the row compares with the best one.
    """

    run: Run
    name: str
    group: str
    run_id: str
    settings: dict[str, Any]
    values: dict[str, Any]


def seed_summaries(runs: Sequence[Run]) -> list[SeedSummary]:
    """Summarize the rows of each sweep that has a row with several seeds; other runs have no summary."""
    sweeps: dict[str, list[Run]] = {}
    for run in runs:
        if run.summary.group is not None and run.settings:
            sweeps.setdefault(run.summary.group, []).append(run)
    found = []
    for group, jobs in sweeps.items():
        comparison = compare(jobs)
        rows = [row for row in comparison.rows if row.estimates[comparison.metrics[0]].values]
        if any(row.n_seeds > 1 for row in rows):
            found += [_summarize(row, group, comparison) for row in rows]
    return found


def send(summary: SeedSummary, config: WandbConfig, mode: str) -> str:
    """Write a summary as one wandb run, and return its web page, or its folder below that of the sweep.

    Args:
        config: its destination, and the seconds to wait for the server.
        mode: "online" or "offline".

    Raises:
        RunError: the wandb folder of its first run leads elsewhere, or another process writes to this run.
        PathError: the folder cannot be written to.
        TimeoutError: the server does not answer.
        wandb.Error: the server refuses.
    """
    directory = RunDirectory(summary.run.path)
    with directory.claim():
        record = wandb_record.begin(
            config,
            directory,
            summary.settings,
            mode=mode,
            run_id=summary.run_id,
            is_live=False,
            group=summary.group,
            name=summary.name,
            job_type=JOB_TYPE,
        )
        wandb_record.finish(record, summary.values, config, config.init_timeout)
    return str(record.url) if mode == "online" else os.path.relpath(Path(record.dir).parent, directory.path.parent)


def _summarize(row: Row, group: str, comparison: Comparison) -> SeedSummary:
    runs = averaged(row.runs)
    settings = {key: value for key, value in runs[0].settings.items() if key != "seed"}
    seeds = f"{row.n_seeds} seed{'s' * (row.n_seeds != 1)}"
    values: dict[str, Any] = {
        "judged_by": comparison.metrics[0],
        "verdict": row.verdict or None,
        "p_value": row.p_value,
        "estimated": sorted(row.sampled),
    }
    for name in comparison.metrics:
        if known := row.estimates[name].values:
            values |= {f"{name}/mean": statistics.fmean(known), f"{name}/n": len(known)}
            values[f"{name}/sd"] = statistics.stdev(known) if len(known) > 1 else None
    return SeedSummary(
        run=runs[0],
        name=f"{row.describe() if row.settings else group} ({seeds})",
        group=group,
        run_id=hashlib.sha256(repr([group, sorted(settings.items())]).encode()).hexdigest()[:12],
        settings=settings | {"seeds": list(row.by_seed)},
        values=values,
    )
