"""The result of a finished run, as printed in the terminal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from nanolm import shell
from nanolm.config.budget import MAX_STEPS, Budget
from nanolm.errors import RunError
from nanolm.plotting import Curve, terminal_plot
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import VAL, MetricsRow
from nanolm.runs.summary import STOPPED_EARLY, Summary
from nanolm.terminal import visible
from nanolm.wording import LOSSY, format_bytes


def plot_losses(rows: Sequence[MetricsRow], baselines: dict[str, float], width: int) -> str:
    """Plot training and validation losses over steps, with baselines as horizontal lines.

    Returns:
        Lines of text; an empty string if no split has two points.
    """
    curves = []
    for split, marker in (("train", "braille"), ("val", "hd")):
        points = [(row.step, row.loss) for row in rows if row.split == split and row.loss is not None]
        if len(points) > 1:
            steps, losses = zip(*points, strict=True)
            curves.append(Curve(steps, losses, f"{split} loss", marker))
    if not curves:
        return ""
    ends = [min(curve.x[0] for curve in curves), max(curve.x[-1] for curve in curves)]
    for name, loss in baselines.items():
        curves.append(Curve(ends, [loss, loss], name.replace("_", " "), "·"))
    return terminal_plot(curves, width, "step", "nats per token")


def print_result_table(
    summary: Summary, run: RunDirectory, sample: str, prompt: str = "", plugins: Sequence[str] = ()
) -> None:
    """Print the result of a run: loss curve, losses compared with the baselines, a sample and the next commands.

    Args:
        sample: generated text; an empty string prints none.
        prompt: for the `nanolm generate` command; an empty string prints no such command.
        plugins: modules that the run was trained with.
    """
    from rich.text import Text

    from nanolm.tables import Console, Table, cell

    console = Console()
    path = visible(str(run.path))
    plotted = {name: loss for name, loss in summary.baseline_losses.items() if name == "counted_bigram"}
    estimate = None
    try:
        rows = run.read_thinned_metrics()
        estimate = next((row.estimated_loss for row in reversed(rows) if row.split == VAL), None)
        if plot := plot_losses(rows, plotted, width=min(console.width, 100)):
            print(plot)
    except RunError as error:
        # The run has been trained, and its result is in the summary.
        console.print(cell(error.found))
    budget = None if summary.is_fitted else next(itertools.starmap(Budget, summary.budget.items()), None)
    console.print(f"{summary.status} at step {summary.step:,}" + _of_budget(summary.status, budget, summary.max_steps))
    table = Table(["", "nats/token", "bits/byte", ""], "lrrl")
    best = summary.best_val_loss
    if best is not None:
        # Bits per byte of one nat per token; a loss of 0 does not determine it.
        bits = (summary.bits_per_byte or math.nan) / best if best else math.nan
        table.add_row(
            "val loss, best",
            cell(f"{best:.4f}", "bold"),
            cell(f"{best * bits:.4f}", "bold"),
            f"step {summary.best_step:,}, {_scored(summary.best_val_sample, summary)}",
        )
        final = summary.final_val_loss
        if final is not None and final != best:
            note = _scored(summary.final_val_sample, summary) if summary.best_val_sample else ""
            table.add_row("val loss, final", f"{final:.4f}", f"{final * bits:.4f}", note)
        if estimate is not None:
            note = "of the last evaluation, over random batches"
            table.add_row("val loss, estimate", f"{estimate:.4f}", f"{estimate * bits:.4f}", note)
        averaged = summary.final_ema_val_loss
        if averaged is not None:
            lowest = summary.best_ema_val_loss
            note = "final averaged weights" + (f"; lowest {lowest:.4f}" if lowest != averaged else "")
            table.add_row("val loss, EMA", f"{averaged:.4f}", f"{averaged * bits:.4f}", note)
        if summary.test_loss is not None and summary.test_bits_per_byte is not None:
            note = f"step {summary.test_step:,}, chosen by validation loss and scored once"
            table.add_row("test loss", f"{summary.test_loss:.4f}", f"{summary.test_bits_per_byte:.4f}", note)
        compressed = {name: its_bits / bits for name, its_bits in summary.baseline_bits_per_byte.items()}
        for name, loss in (summary.baseline_losses | compressed).items():
            table.add_row(name.replace("_", " "), f"{loss:.4f}", f"{loss * bits:.4f}", _compare(loss, best))
        console.print(table)
        if summary.is_lossy:
            console.print(f"[bold]{LOSSY}[/]\n")
    if sample:
        console.print("[bold]sample[/]")
        console.print(Text(visible(sample.strip("\n"), multiline=True) + "\n"))
    speed = f", {summary.tokens_per_second:,.0f} tokens/s" if summary.tokens_per_second else ""
    size = f"{summary.entries:,} entries" if summary.is_fitted else summary.describe_parameters()
    console.print(f"{size}, {summary.tokens:,} tokens in {summary.seconds:.0f} s{speed}")
    lines = [f"run        {path}  (metrics.jsonl, samples.jsonl, checkpoints, ...)"]
    if summary.peak_memory_bytes is not None:
        lines.append(f"memory     {format_bytes(summary.peak_memory_bytes)} at its peak")
    if summary.wandb_id:
        mode = "offline; upload with `wandb sync`" if summary.wandb_mode == "offline" else summary.wandb_mode
        project = f"project {summary.wandb_project}, " if summary.wandb_project else ""
        lines.append(f"wandb      {path}/wandb  ({project}{mode})")
    if prompt:
        lines.append(f"generate   {shell.generate_command(run.path, prompt, plugins)}")
    is_completed = summary.status == "completed"
    if not (is_completed and summary.is_fitted):
        more = [str((budget or Budget(MAX_STEPS, summary.steps_done)).times(2))] if is_completed else []
        lines.append(f"resume     {shell.resume_command(run.path, *more)}")
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _scored(sample: int | None, summary: Summary) -> str:
    """Say how many validation tokens a loss is over."""
    total = f"{summary.val_scored_tokens:,} tokens"
    return f"all {total}" if sample is None else f"estimate over {sample:,} of {total}"


def _of_budget(status: str | None, budget: Budget | None, max_steps: int | None) -> str:
    """Return the number of steps of a budget in another unit, and of a run that stopped early."""
    is_early = status == STOPPED_EARLY
    if budget is None or max_steps is None or (budget.in_steps and not is_early):
        return ""
    return f" of {max_steps:,}" + ("" if budget.in_steps else f" ({budget})")


def _compare(baseline: float, best: float) -> str:
    """Compare the best loss with a baseline, as in "best is 3.1% below"."""
    if best == baseline:
        return "best is the same"
    # Counting predicts a text that repeats itself with a loss of 0.
    share = f"{abs(1 - best / baseline):.1%} " if baseline else ""
    return f"best is {share}{'below' if best < baseline else 'above'}"
