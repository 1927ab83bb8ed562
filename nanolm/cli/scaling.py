"""`nanolm scaling`: fit the loss of runs as a power law of parameters and tokens."""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanolm.analysis import metrics
from nanolm.analysis.collection import Run, find
from nanolm.analysis.comparability import comparability, validation_texts
from nanolm.analysis.settings import varying_settings
from nanolm.cli.arguments import add_json, add_runs
from nanolm.config.fields import Trait
from nanolm.config.roles import has_trait
from nanolm.errors import RunError
from nanolm.json_text import dump_json
from nanolm.option_types import Parser
from nanolm.wording import short_number

if TYPE_CHECKING:
    from nanolm.analysis.scaling import Fit, Point


def add_arguments(parser: Parser) -> None:
    parser.describe("The law is L(N, D) = E + A / N^a + B / D^b (Hoffmann et al. 2022).")
    add_runs(parser)
    add_json(parser)


def run(arguments: Namespace) -> None:
    """Print the law, its residual, and the predicted and measured losses."""
    from nanolm.analysis.scaling import fit

    points, unit, notes = collect_points(find(arguments.runs))
    law = fit(points)
    notes = [*law.notes, *notes]
    if arguments.json:
        print(dump_json({**dataclasses.asdict(law), "unit": unit, "notes": notes}))
        return
    from nanolm.tables import Console, Table, cell

    console = Console()
    console.print(f"[bold]L = {formula(law)}[/]   best val loss, {unit}")
    console.print(f"{law.n_points} runs, residual {law.residual:.2%} of the loss (root mean square)")
    if law.is_law and law.a is not None and law.b is not None:
        share = law.b / (law.a + law.b)
        console.print(f"compute-optimal for C FLOPs: N grows as C^{share:.2f}, D as C^{1 - share:.2f}")
    table = Table(["parameters N", "tokens D", "runs", "measured", "fitted", "error"], "rrrrrr")
    losses: dict[tuple[float, float], list[float]] = {}
    for point in points:
        losses.setdefault((point.parameters, point.tokens), []).append(point.loss)
    for (size, tokens), group in sorted(losses.items()):
        measured, fitted = sum(group) / len(group), law.loss(size, tokens)
        numbers = f"{measured:.4f}", f"{fitted:.4f}", f"{fitted / measured - 1:+.2%}"
        table.add_row(short_number(size), short_number(tokens), str(len(group)), *numbers)
    console.print(table)
    for note in notes:
        console.print(cell(note))


def collect_points(runs: Sequence[Run]) -> tuple[list[Point], str, list[str]]:
    """Return the best validation loss of each completed run, the unit of these losses, and notes for the user.

    Raises:
        RunError: the validation texts differ.
    """
    from nanolm.analysis.scaling import Point

    if len(validation_texts(runs)) > 1:
        raise RunError(
            "the runs were evaluated on different validation texts, so no single law fits them",
            where="nanolm scaling",
            hint="name runs with the same validation text",
        )
    name, unit = ("bits_per_byte", "bits per byte") if comparability(runs)[1] else ("best_val_loss", "nats per token")
    trained = [run for run in runs if run.status == "completed" and not run.summary.is_fitted]
    points, notes = [], []
    for run in trained:
        found = metrics.compute_metrics(run)
        loss = getattr(found, name)
        if loss and found.parameters and found.tokens:
            points.append(Point(found.parameters, found.tokens, loss))
    if len(points) < len(runs):
        notes.append(
            f"{len(runs) - len(points)} of {len(runs)} runs were ignored: count-based, not completed, or without a loss"
        )
    others = [key for key in varying_settings(trained) if not has_trait(key, Trait.scale)]
    if others:
        notes.append(f"the runs also differ in {', '.join(others)}, which the law does not account for")
    epochs = max(((run.summary.tokens or 0) / (run.summary.train_tokens or math.inf) for run in trained), default=0)
    if epochs > 1:
        notes.append(f"some runs trained for up to {epochs:.1f} epochs: D counts repeated tokens each time")
    return points, unit, notes


def formula(law: Fit) -> str:
    """Format E + A / N^a + B / D^b with the fitted numbers."""
    terms = [f"{law.E:.4g}"]
    if law.A is not None:
        terms.append(f"{law.A:.4g} / N^{law.a:.3f}")
    if law.B is not None:
        terms.append(f"{law.B:.4g} / D^{law.b:.3f}")
    return " + ".join(terms)
