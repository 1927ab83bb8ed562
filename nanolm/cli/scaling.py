"""`nanolm compare --fit`: the loss of runs of several sizes and lengths as a power law."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nanolm.analysis import metrics as figures
from nanolm.analysis.collection import Run, find, told_apart
from nanolm.analysis.comparison import comparability, texts_of
from nanolm.analysis.scaling import Fit, Point, fit
from nanolm.errors import RunError
from nanolm.json_text import dump_json
from nanolm.wording import short_number

# What a law of size and tokens is about; all else that differs it knows nothing of.
VARIED = {"seed", "size", "trainer.max_steps", "trainer.batch_size", "trainer.gradient_accumulation"}


def points_of(runs: Sequence[Run]) -> tuple[list[Point], str, list[str]]:
    """The best validation loss of each run that was completed, in which unit it is, and what else is to be said.

    Raises:
        RunError: the validation texts differ.
    """
    if len(texts_of(runs)) > 1:
        raise RunError(
            "the runs are scored on different validation texts, and one law cannot hold for them all",
            where="--fit",
            hint="name the runs of one text",
        )
    name, unit = ("bits_per_byte", "bits per byte") if comparability(runs)[1] else ("best_val_loss", "nats per token")
    trained = [run for run in runs if run.status == "completed" and "entries" not in run.summary]
    points, notes = [], []
    for run in trained:
        found = figures.of(run)
        loss = getattr(found, name)
        if loss and found.parameters and found.tokens:
            points.append(Point(found.parameters, found.tokens, loss))
    if len(points) < len(runs):
        notes.append(
            f"{len(runs) - len(points)} of {len(runs)} runs are left out: counted, not completed, or without a loss"
        )
    others = [key for key in told_apart(trained) if key not in VARIED and not key.startswith("size.")]
    if others:
        notes.append(f"the runs differ in {', '.join(others)} too, of which the law knows nothing")
    epochs = max(
        (run.summary["tokens"] / run.summary["train_tokens"] for run in trained if _has_epochs(run)), default=0
    )
    if epochs > 1:
        notes.append(f"some runs read their text up to {epochs:.1f} times: D counts every reading")
    return points, unit, notes


def show(paths: Sequence[str], as_json: bool = False) -> None:
    """Prints the law, how well it holds, and what it foretells beside what was found.

    Raises:
        RunError: a path has no run, or the runs are too few or too alike for a law.
    """
    points, unit, notes = points_of(find(paths))
    law = fit(points)
    notes = [*law.notes, *notes]
    if as_json:
        print(dump_json({**dataclasses.asdict(law), "unit": unit, "notes": notes}))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from nanolm.tables import Console

    console = Console()
    console.print(f"[bold]L = {in_words(law)}[/]   best val loss, {unit}")
    console.print(f"{law.n_points} runs, residual {law.residual:.2%} of the loss (root mean square)")
    if law.is_law and law.a is not None and law.b is not None:
        share = law.b / (law.a + law.b)
        console.print(f"for the least loss with C FLOPs: N grows as C^{share:.2f}, D as C^{1 - share:.2f}")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("parameters N", "tokens D", "runs", "found", "fitted", "off by"):
        table.add_column(name, justify="right")
    places: dict[tuple[float, float], list[float]] = {}
    for point in points:
        places.setdefault((point.parameters, point.tokens), []).append(point.loss)
    for (size, tokens), losses in sorted(places.items()):
        found, fitted = sum(losses) / len(losses), law.loss(size, tokens)
        off = f"{fitted / found - 1:+.2%}"
        table.add_row(short_number(size), short_number(tokens), str(len(losses)), f"{found:.4f}", f"{fitted:.4f}", off)
    console.print(table)
    for note in notes:
        console.print(note)


def in_words(law: Fit) -> str:
    """E + A / N^a + B / D^b, with its numbers."""
    terms = [f"{law.E:.4g}"]
    if law.A is not None:
        terms.append(f"{law.A:.4g} / N^{law.a:.3f}")
    if law.B is not None:
        terms.append(f"{law.B:.4g} / D^{law.b:.3f}")
    return " + ".join(terms)


def _has_epochs(run: Run) -> bool:
    return bool(run.summary.get("tokens") and run.summary.get("train_tokens"))
