"""Curves in the terminal (plotext), and figures as PNG files (matplotlib, an optional dependency)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from nanolm.errors import SettingsError, install_hint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 16


class Curve(NamedTuple):
    """A line of a terminal plot, or dots."""

    x: Sequence[float]
    y: Sequence[float]
    label: str | None = None
    marker: str = "braille"
    is_line: bool = True


def terminal_plot(
    curves: Sequence[Curve],
    width: int,
    x_label: str,
    y_label: str,
    *,
    y_ticks: Sequence[float] = (),
    label_x: Callable[[float], str] | None = None,
) -> str:
    """Plot curves as HEIGHT lines of text, with five ticks over the whole range of x.

    Args:
        curves: at least one.
        width: in characters.
        y_ticks: from the lower to the upper end of the y axis; empty lets plotext choose.
        label_x: formats a tick of the x axis; None rounds it to an integer.
    """
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, HEIGHT)
    for curve in curves:
        draw = plotext.plot if curve.is_line else plotext.scatter
        draw(curve.x, curve.y, label=curve.label, marker=curve.marker)
    if y_ticks:
        plotext.ylim(y_ticks[0], y_ticks[-1])
        plotext.yticks(y_ticks, [f"{tick:.3g}" for tick in y_ticks])
    first, last = min(min(curve.x) for curve in curves), max(max(curve.x) for curve in curves)
    x_ticks = [first + (last - first) * n / 4 for n in range(5)]
    if label_x is None:
        plotext.xticks(sorted(set(map(round, x_ticks))))
    else:
        plotext.xticks(x_ticks, list(map(label_x, x_ticks)))
    plotext.xlabel(x_label)
    plotext.ylabel(y_label)
    return "\n".join(line.rstrip() for line in plotext.uncolorize(plotext.build()).splitlines())


@contextlib.contextmanager
def importing_matplotlib() -> Iterator[None]:
    """Explain a missing matplotlib to the user.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise SettingsError("--png needs matplotlib", where="--png", hint=install_hint("plot")) from error


def encode(figure: Figure) -> bytes:
    """Render a figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
