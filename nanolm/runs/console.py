"""Tables for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Beside every figure of such a run: what <unk> stands for was never predicted.
LOSSY = "lossy tokenizer: <unk> hides text, not comparable"


def closing_table(summary: dict[str, Any], run: Path, sample: str) -> None:
    """Prints how a run ended: the figures beside what counting reaches, a sample, and where everything is."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, title=f"{summary['status']} at step {summary['step']:,}", title_justify="left")
    table.add_column("")
    table.add_column("nats per token", justify="right")
    table.add_column("bits per byte", justify="right")
    table.add_column("")
    best = summary["best_val_loss"]
    if best is not None:
        bits = summary["bits_per_byte"] / best
        table.add_row(
            "val loss, best",
            f"[bold]{best:.4f}[/]",
            f"[bold]{best * bits:.4f}[/]",
            f"step {summary['best_step']:,}; exact over {summary['val_scored_tokens']:,} tokens"
            + ("" if summary["lossless"] else f"; {LOSSY}"),
        )
        final = summary["final_val_loss"]
        if final != best:
            table.add_row("val loss, final", f"{final:.4f}", f"{final * bits:.4f}", "")
        for name, loss in summary["reference_losses"].items():
            difference = f"the best val loss is {abs(1 - best / loss):.1%} {'under' if best < loss else 'over'} it"
            table.add_row(name.replace("_", " "), f"{loss:.4f}", f"{loss * bits:.4f}", difference)
    console.print(table)
    if sample:
        console.print("[bold]a sample of its writing[/]")
        console.print(escape(sample.strip("\n")) + "\n")
    speed = f", {summary['tokens_per_second']:,.0f} tokens/s" if summary["tokens_per_second"] else ""
    console.print(
        f"{summary['parameters']:,} parameters, {summary['tokens']:,} tokens in {summary['seconds']:.0f} s{speed}"
    )
    console.print(f"run        {escape(str(run))}  (metrics.jsonl, samples.txt, checkpoints/)", soft_wrap=True)
    if summary.get("wandb_id"):
        how = "offline; `wandb sync` sends it" if summary["wandb_mode"] == "offline" else summary["wandb_mode"]
        console.print(f"wandb      {escape(str(run / 'wandb'))}  ({how})", soft_wrap=True)
    console.print(f"write      nanolm generate {escape(str(run))} --prompt 'The '", soft_wrap=True)
    more = summary["step"] * 2 if summary["status"] == "completed" else None
    hint = f" trainer.max_steps={more}" if more else ""
    console.print(f"go on      nanolm train resume={escape(str(run))}{hint}", soft_wrap=True)
