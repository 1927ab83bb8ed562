"""The runs of scripts/gpu_check.py that train to a loss: nanoGPT's GPU configuration, and ours at its size."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent

# The validation loss that nanoGPT's README states for its GPU configuration, an estimate over 200 batches.
TARGET = 1.4697
# Each with its experiment and further overrides.
TRAININGS: dict[str, tuple[str, ...]] = {
    "nanogpt_gpu": ("experiment=nanogpt_gpu",),
    "shakespeare_gpu": ("experiment=shakespeare_gpu",),
    # A schedule of 8M tokens.
    "shakespeare_gpu_8m": ("experiment=shakespeare_gpu", "trainer.max_steps=488", "trainer.eval_every=61"),
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """The validation losses of a run, exact and in nats per character.

    Attributes:
        training: its name in TRAININGS.
        parameters: number of weights.
        best: the lowest loss, and `best_tokens` the training tokens until it.
        final: the last loss, and `final_estimate` nanoGPT's estimate of it over random batches.
        target_tokens: training tokens until TARGET, and `target_seconds` the seconds of the run; None if it is not
            reached.
        seconds: of the whole run.
    """

    training: str
    seed: int
    parameters: int
    best: float
    best_tokens: int
    final: float
    final_estimate: float | None
    target_tokens: int | None
    target_seconds: float | None
    seconds: float


def train_all(names: Sequence[str], seeds: int, overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Train each with each seed, and yield the fields of Trained, or the training, the seed and the error."""
    for name in names:
        for seed in range(1, seeds + 1):
            yield _train(name, seed, overrides)


def _train(name: str, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Train in a separate process and a temporary folder."""
    from nanolm.runs.directory import RunDirectory
    from nanolm.runs.metrics import VAL

    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run")
        fixed = [f"seed={seed}", "logger=none", "trainer.sample_tokens=0", f"hydra.run.dir={run.path}"]
        command = [sys.executable, "-m", "nanolm", "train", *TRAININGS[name], *fixed, *overrides]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return {"training": name, "seed": seed, "error": lines[0]}
        rows = [row for row in run.read_metrics(VAL) if row.loss is not None]
        best = min(rows, key=lambda row: row.loss or 0.0)
        reached = next((row for row in rows if row.loss is not None and row.loss <= TARGET), None)
        found = Trained(
            training=name,
            seed=seed,
            parameters=run.read_summary().parameters or 0,
            best=best.loss or 0.0,
            best_tokens=best.tokens or 0,
            final=rows[-1].loss or 0.0,
            final_estimate=rows[-1].estimated_loss,
            target_tokens=reached.tokens if reached else None,
            target_seconds=reached.seconds if reached else None,
            seconds=rows[-1].seconds or 0.0,
        )
    return dataclasses.asdict(found)


def describe(found: dict[str, Any]) -> str:
    """Describe a run in a line."""
    if "error" in found:
        return f"{found['training']} seed {found['seed']}: {found['error']}"
    goal = "not reached" if found["target_tokens"] is None else f"after {found['target_tokens']:,} tokens"
    return f"{found['training']} seed {found['seed']}: best val loss {found['best']:.4f}, {TARGET} {goal}"


def in_markdown(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Format the runs as the lines of a Markdown section: the mean and the standard deviation over the seeds."""
    columns = ["training", "seeds", "parameters", f"tokens to {TARGET}", "seconds", "best val loss", "at tokens"]
    columns += ["final", "its estimate", "seconds in all"]
    lines = ["", "## Training to a loss", "", "Validation losses are exact, in nats per character.", ""]
    lines += ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for name in TRAININGS:
        all_of = [run for run in runs if run["training"] == name]
        group = [run for run in all_of if "error" not in run]
        if group:
            reached = [run for run in group if run["target_tokens"] is not None]
            note = "not reached" if not reached else f"{len(reached)} of {len(group)}: "
            note = "" if len(reached) == len(group) else note
            cells = [
                str(len(group)),
                f"{group[0]['parameters']:,}",
                note + _spread(reached, "target_tokens", "{:,.0f}"),
                _spread(reached, "target_seconds", "{:.0f}"),
                _spread(group, "best", "{:.4f}"),
                _spread(group, "best_tokens", "{:,.0f}"),
                _spread(group, "final", "{:.4f}"),
                _spread(group, "final_estimate", "{:.4f}"),
                _spread(group, "seconds", "{:.0f}"),
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        failed = [describe(run).replace("|", "/") for run in all_of if "error" in run]
        lines += [f"| {error} |" + " |" * (len(columns) - 1) for error in failed]
    return lines


def _spread(runs: Sequence[dict[str, Any]], key: str, form: str) -> str:
    """Return the mean of a field, with the standard deviation of several; an empty string where there is none."""
    values = [run[key] for run in runs if run[key] is not None]
    if not values:
        return ""
    mean = form.format(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.format(statistics.stdev(values))}"
