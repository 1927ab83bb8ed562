"""Tables and curves for people, in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nanolm import shell
from nanolm.plotting import Curve, terminal_plot
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import MetricsRow
from nanolm.runs.summary import Summary
from nanolm.terminal import visible

# Beside every figure of such a run: what <unk> stands for was never predicted.
LOSSY = "lossy tokenizer: <unk> hides text, bits per byte do not compare"


def curve(rows: Sequence[MetricsRow], references: dict[str, float], width: int) -> str:
    """Draws the losses of metrics.jsonl over steps, and constant lines to compare them with.

    Returns:
        Lines of text; an empty string where there are fewer than two points of a split to join.
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
    for name, loss in references.items():
        curves.append(Curve(ends, [loss, loss], name.replace("_", " "), "·"))
    return terminal_plot(curves, width, "step", "nats per token")


def closing_table(
    summary: Summary, run: RunDirectory, sample: str, prompt: str = "", plugins: Sequence[str] = ()
) -> None:
    """Print the result of a run: loss curve, losses beside the baselines, a sample, and the next commands.

    Args:
        summary: of the run.
        run: where it is.
        sample: text of the model; "" prints none.
        prompt: from the run's text, for `nanolm generate`.
        plugins: modules that the run was made with.
    """
    from rich.text import Text

    from nanolm.tables import Console, Table, cell

    console = Console()
    path = visible(str(run.path))
    bigram = {name: loss for name, loss in summary.baseline_losses.items() if name == "counted_bigram"}
    if drawn := curve(run.read_metrics(), bigram, width=min(console.width, 100)):
        print(drawn)
    console.print(f"{summary.status} at step {summary.step:,}")
    table = Table(["", "nats/token", "bits/byte", ""], "lrrl")
    best = summary.best_val_loss
    if best is not None:
        # What a nat a token is in bits a byte; a loss of nothing does not say.
        bits = (summary.bits_per_byte or math.nan) / best if best else math.nan
        table.add_row(
            "val loss, best",
            cell(f"{best:.4f}", "bold"),
            cell(f"{best * bits:.4f}", "bold"),
            f"step {summary.best_step:,}, all {summary.val_scored_tokens:,} tokens",
        )
        final = summary.final_val_loss
        if final is not None and final != best:
            table.add_row("val loss, final", f"{final:.4f}", f"{final * bits:.4f}", "")
        averaged = summary.final_ema_val_loss
        if averaged is not None:
            lowest = summary.best_ema_val_loss
            note = "of the last weights, averaged" + (f"; lowest {lowest:.4f}" if lowest != averaged else "")
            table.add_row("val loss, ema", f"{averaged:.4f}", f"{averaged * bits:.4f}", note)
        compressed = {name: its_bits / bits for name, its_bits in summary.baseline_bits_per_byte.items()}
        for name, loss in (summary.baseline_losses | compressed).items():
            table.add_row(name.replace("_", " "), f"{loss:.4f}", f"{loss * bits:.4f}", _relative_to(loss, best))
        console.print(table)
        if summary.is_lossy:
            console.print(f"[bold]{LOSSY}[/]\n")
    if sample:
        console.print("[bold]a sample of its writing[/]")
        console.print(Text(visible(sample.strip("\n"), multiline=True) + "\n"))
    speed = f", {summary.tokens_per_second:,.0f} tokens/s" if summary.tokens_per_second else ""
    amount = f"{summary.entries:,} entries" if summary.is_fitted else f"{summary.parameters:,} parameters"
    peak = summary.peak_memory_bytes
    memory = "" if peak is None else f", {in_units(peak)} at most"
    console.print(f"{amount}, {summary.tokens:,} tokens in {summary.seconds:.0f} s{speed}{memory}")
    console.print(Text(f"run        {path}  (metrics.jsonl, samples.jsonl, checkpoints, ...)"), soft_wrap=True)
    if summary.wandb_id:
        how = "offline; `wandb sync` sends it" if summary.wandb_mode == "offline" else summary.wandb_mode
        project = f"project {summary.wandb_project}, " if summary.wandb_project else ""
        console.print(Text(f"wandb      {path}/wandb  ({project}{how})"), soft_wrap=True)
    if prompt:
        console.print(Text(f"write      {shell.generate_command(run.path, prompt, plugins)}"), soft_wrap=True)
    is_completed = summary.status == "completed"
    if not (is_completed and summary.is_fitted):
        more = [f"trainer.max_steps={summary.steps_done * 2}"] if is_completed else []
        console.print(Text(f"go on      {shell.resume_command(run.path, *more)}"), soft_wrap=True)


def _relative_to(reference: float, best: float) -> str:
    """The best loss in words beside a reference loss, such as "best is 3.1% below"."""
    if best == reference:
        return "best is the same"
    # Counting may predict a text that repeats itself with a loss of 0.
    share = f"{abs(1 - best / reference):.1%} " if reference else ""
    return f"best is {share}{'below' if best < reference else 'above'}"


def in_units(n_bytes: int) -> str:
    """Bytes as people say them."""
    amount, unit = float(n_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:,.1f} {unit}"


def in_time(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
