"""`nanolm scaling`: fit the loss of runs as a power law of parameters and tokens."""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanolm import option_types as types
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
from nanolm.output_files import write_output_file
from nanolm.plotting import Curve, encode, importing_matplotlib, terminal_plot
from nanolm.runs.summary import FINISHED, STOPPED_EARLY
from nanolm.wording import short_number

if TYPE_CHECKING:
    from nanolm.analysis.scaling import Fit, Point


# Schedules that do not refer to the number of steps, so that a run may end anywhere.
UNPLANNED = ("constant", "plateau")
# Curves and width of a plot in the terminal, and points of a fitted curve.
MAX_CURVES, MAX_WIDTH, N_PLACES = 5, 100, 50


def add_arguments(parser: Parser) -> None:
    parser.describe("The law is L(N, D) = E + A / N^a + B / D^b (Hoffmann et al. 2022).")
    add_runs(parser)
    add_json(parser)
    parser.add("--png", check=types.path, metavar="FILE", help="also write the plot as a PNG file")


def run(arguments: Namespace) -> None:
    """Print the law, its residual, and the predicted and measured losses."""
    from nanolm.analysis.scaling import bootstrap, fit

    if arguments.png is not None:
        with importing_matplotlib():
            import matplotlib.figure  # noqa: F401
    points, unit, notes = collect_points(find(arguments.runs))
    try:
        law = fit(points)
    except RunError as error:
        # Runs that were ignored may be the reason.
        raise RunError(error.found, where=error.where, hint="; ".join([error.hint, *notes])) from error
    intervals = bootstrap(points, law)
    notes = [*law.notes, *notes]
    if arguments.png is not None:
        write_output_file("--png", arguments.png, draw(points, law, unit))
    if arguments.json:
        of_name = {name: dataclasses.asdict(interval) for name, interval in intervals.items()}
        print(dump_json({**dataclasses.asdict(law), "intervals": of_name, "unit": unit, "notes": notes}))
        return
    from nanolm.tables import Console, Table, cell

    console = Console()
    console.print(f"[bold]L = {formula(law)}[/]   final val loss, {unit}")
    console.print(f"{law.n_points} runs, residual {law.residual:.2%} of the loss (root mean square)")
    if intervals:
        listed = ", ".join(f"{name} {one.low:.3f} to {one.high:.3f}" for name, one in intervals.items())
        console.print(f"95% bootstrap intervals: {listed}")
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
    print(plot(points, law, min(console.width, MAX_WIDTH), unit))
    for note in notes:
        console.print(cell(note))


def collect_points(runs: Sequence[Run]) -> tuple[list[Point], str, list[str]]:
    """Return the final validation loss of each completed run, the unit of these losses, and notes for the user.

    A run that stopped early counts only if its learning rate was not to decay: a law compares whole runs.

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
    in_bits = comparability(runs)[1] is not None
    trained = [run for run in runs if run.status in FINISHED and not run.summary.is_fitted]
    stopped = [run for run in trained if run.status == STOPPED_EARLY]
    cut_off = [run for run in stopped if run.settings.get("scheduler.name") not in UNPLANNED]
    trained = [run for run in trained if run not in cut_off]
    points, notes = [], []
    for run in trained:
        found = metrics.compute_metrics(run)
        loss, per_byte = found.final_val_loss, found.bits_per_nat
        if in_bits:
            loss = None if loss is None or per_byte is None else loss * per_byte
        if loss and found.parameters and found.tokens:
            points.append(Point(found.parameters, found.tokens, loss))
    if n_ignored := len(runs) - len(points) - len(cut_off):
        notes.append(f"{n_ignored} of {len(runs)} runs were ignored: count-based, not completed, or without a loss")
    if cut_off:
        notes.append(
            f"{len(cut_off)} of {len(runs)} runs were ignored: they stopped early (trainer.early_stop), before "
            "the end of their learning-rate schedule"
        )
    if n_counted := len(stopped) - len(cut_off):
        notes.append(f"{n_counted} of {len(runs)} runs stopped early: their D is the number of tokens until then")
    others = [key for key in varying_settings(trained) if not has_trait(key, Trait.scale)]
    if others:
        notes.append(f"the runs also differ in {', '.join(others)}, which the law does not account for")
    epochs = max(((run.summary.tokens or 0) / (run.summary.train_tokens or math.inf) for run in trained), default=0)
    if epochs > 1:
        notes.append(f"some runs trained for up to {epochs:.1f} epochs: D counts repeated tokens each time")
    return points, "bits per byte" if in_bits else "nats per token", notes


def curves(points: Sequence[Point], law: Fit) -> list[tuple[str, list[Point], list[tuple[float, float]]]]:
    """Return the runs of each size by their tokens, or of each budget by its sizes if only these vary.

    Returns:
        For each: its name, its runs, and the fitted law as (tokens or parameters, loss).
    """
    by_tokens = law.b is not None
    groups: dict[float, list[Point]] = {}
    for point in points:
        groups.setdefault(point.parameters if by_tokens else point.tokens, []).append(point)
    places = sorted({point.tokens if by_tokens else point.parameters for point in points})
    first, last = math.log(places[0]), math.log(places[-1])
    x = [math.exp(first + (last - first) * n / (N_PLACES - 1)) for n in range(N_PLACES)]
    return [
        (
            f"{'N' if by_tokens else 'D'} {short_number(value)}",
            group,
            [(place, law.loss(value, place) if by_tokens else law.loss(place, value)) for place in x],
        )
        for value, group in sorted(groups.items())
    ]


def plot(points: Sequence[Point], law: Fit, width: int, unit: str) -> str:
    """Draw the fitted law as lines and the runs as dots in the terminal, with logarithmic axes."""
    lines = []
    for name, group, fitted in curves(points, law)[:MAX_CURVES]:
        lines.append(Curve([math.log10(x) for x, _ in fitted], [loss for _, loss in fitted], name))
        x = [math.log10(point.tokens if law.b is not None else point.parameters) for point in group]
        lines.append(Curve(x, [point.loss for point in group], is_line=False, marker="dot"))
    label = "tokens D" if law.b is not None else "parameters N"
    return terminal_plot(lines, width, f"{label} (log scale)", unit, label_x=_power_of_ten)


def _power_of_ten(exponent: float) -> str:
    return short_number(10**exponent)


def draw(points: Sequence[Point], law: Fit, unit: str) -> bytes:
    """Draw the fitted law and the runs as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for at, (name, group, fitted) in enumerate(curves(points, law)):
        colour = f"C{at % 10}"
        axes.plot([x for x, _ in fitted], [loss for _, loss in fitted], color=colour, label=name)
        x = [point.tokens if law.b is not None else point.parameters for point in group]
        axes.plot(x, [point.loss for point in group], "o", color=colour, markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tokens D" if law.b is not None else "parameters N")
    axes.set_ylabel(unit)
    axes.set_title(f"L = {formula(law)}", fontsize=9)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return encode(figure)


def formula(law: Fit) -> str:
    """Format E + A / N^a + B / D^b with the fitted numbers."""
    terms = [f"{law.E:.4g}"]
    if law.A is not None:
        terms.append(f"{law.A:.4g} / N^{law.a:.3f}")
    if law.B is not None:
        terms.append(f"{law.B:.4g} / D^{law.b:.3f}")
    return " + ".join(terms)
