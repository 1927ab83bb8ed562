"""A run as a card for notebooks: its result and its loss curve, as HTML with inline SVG and without scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from nanolm.errors import RunError
from nanolm.report.curves import thin
from nanolm.runs.directory import RunDirectory, display_path
from nanolm.runs.metrics import TRAIN, VAL, MetricsRow

# Colours of page.css that are legible on white and on black.
TRAIN_COLOUR, VAL_COLOUR = "#2d9bd6", "#d55e00"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 460, 170, 44, 24, 10, 12
# More points would be closer than a pixel.
MAX_POINTS = 400

CARD = (
    "border:1px solid rgba(128,128,128,.4);border-radius:10px;padding:12px 16px;max-width:500px;"
    "font:13px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;overflow-wrap:anywhere"
)

Point = tuple[float, float]


def card(run: RunDirectory, description: str) -> str:
    """Return the HTML of a card.

    Args:
        run: whose metrics are drawn, and whose path is the title.
        description: plain text below the title.
    """
    try:
        rows = run.read_thinned_metrics()
        picture = curve_svg(_points(rows, TRAIN), _points(rows, VAL))
    except RunError as error:
        picture = f"<p>{html.escape(error.found)}</p>"
    return (
        f'<div style="{CARD}"><div style="font-weight:600">{html.escape(str(display_path(run.path)))}</div>'
        f'<div style="opacity:.75">{html.escape(description)}</div>{picture}</div>'
    )


def curve_svg(train: Sequence[Point], val: Sequence[Point]) -> str:
    """Draw the losses over the steps; an empty string if no split has two points.

    Args:
        train: (step, loss) of the training loss.
        val: (step, loss) of the validation loss.
    """
    drawn = [points for points in (train, val) if len(points) > 1]
    if not drawn:
        return ""
    steps = [step for points in drawn for step, _ in points]
    losses = [loss for points in drawn for _, loss in points]
    first, last = min(steps), max(steps)
    low, high = min(losses), max(losses)
    span_x, span_y = (last - first) or 1.0, (high - low) or 1.0

    def x(step: float) -> float:
        return LEFT + (step - first) / span_x * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return TOP + (high - loss) / span_y * (HEIGHT - TOP - BOTTOM)

    def line(points: Sequence[Point], colour: str, style: str) -> str:
        coordinates = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)
        return f'<polyline points="{coordinates}" fill="none" stroke="{colour}" {style}/>'

    def text(at_x: float, at_y: float, content: str, anchor: str, colour: str = "currentColor") -> str:
        return (
            f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="11">'
            f"{html.escape(content)}</text>"
        )

    axes = f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="currentColor" opacity=".3"/>'
    parts = [
        axes,
        line(train, TRAIN_COLOUR, 'stroke-width="1" opacity=".85"') if len(train) > 1 else "",
        line(val, VAL_COLOUR, 'stroke-width="2"') if len(val) > 1 else "",
        text(LEFT - 5, TOP + 8, f"{high:.2f}", "end"),
        text(LEFT - 5, HEIGHT - BOTTOM, f"{low:.2f}", "end"),
        text(LEFT, HEIGHT - 7, f"step {first:,.0f}", "start"),
        text(WIDTH - RIGHT, HEIGHT - 7, f"{last:,.0f}", "end"),
        text(WIDTH - RIGHT, TOP + 8, "train", "end", TRAIN_COLOUR) if len(train) > 1 else "",
        text(WIDTH - RIGHT, TOP + 22, "val", "end", VAL_COLOUR) if len(val) > 1 else "",
    ]
    label = f"loss over {last:,.0f} steps, from {losses[0]:.2f} to {drawn[-1][-1][1]:.2f} nats per token"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" style="width:100%;display:block;margin-top:6px" role="img" '
        f'aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
    )


def _points(rows: Sequence[MetricsRow], split: str) -> list[Point]:
    points = [
        (float(row.step), row.loss)
        for row in rows
        if row.split == split and row.loss is not None and math.isfinite(row.loss)
    ]
    return [points[index] for index in thin([loss for _, loss in points], MAX_POINTS)]
