"""The figures of a report as PNG files, in the colours of the page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanolm.errors import explain_os_error
from nanolm.output_files import write_output_file
from nanolm.plotting import encode, importing_matplotlib
from nanolm.report.contents import MAX_LABEL_LENGTH, Contents, Entry, format_or_none
from nanolm.report.curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from nanolm.report.attention_maps import RunMaps

# The colours of page.css, which are safe for colour blindness, and the dashes of data.js.
COLOURS = ("#0072b2", "#d55e00", "#00805c", "#b4538a", "#b07400", "#2d9bd6", "#7a2a5c", "#6f6f1f")
DASHES = ("-", "--", ":", "-.")
REFERENCE = "#6b7680"
LOW, HIGH, MASKED, VISIBLE = "#e8f1fa", "#08306b", "#eef0f2", "#0b5cad"

X_LABELS = {
    "step": "step",
    "tokens": "training tokens",
    "flops": "training FLOPs",
    "seconds": "training seconds",
}

# Training losses are drawn for up to this many runs; more would hide each other.
MAX_TRAINING_CURVES = 4


def write_all(contents: Contents, maps: Sequence[RunMaps], folder: Path) -> list[Path]:
    """Write a PNG for each figure that the runs have data for; creates the folder.

    Raises:
        SettingsError: matplotlib is not installed, or a file cannot be written.
        PathError: the folder cannot be created.
    """
    with importing_matplotlib():
        import matplotlib.figure  # noqa: F401
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(
            error, "the folder cannot be created", where=str(folder), option="--png FOLDER"
        ) from error
    written = []
    for name, figure in _figures(contents, maps):
        path = folder / f"{name}.png"
        write_output_file("--png", path, encode(figure), follow_links=False)
        written.append(path)
    return written


def _figures(contents: Contents, maps: Sequence[RunMaps]) -> Iterator[tuple[str, Figure]]:
    metric = "bits_per_byte" if contents.by_bits else "loss"
    for x_name in X_LABELS:
        if any(_x_values(run, run.curves["val"], x_name) for run in contents.runs):
            yield f"{metric}_by_{x_name}", _losses(contents, x_name)
    for quantity, title in (("lr", "learning rate"), ("grad_norm", "gradient norm before clipping")):
        if any(run.curves[quantity]["y"] for run in contents.runs):
            yield quantity, _lines(contents, quantity, title)
    measured = [run for run in contents.runs if contents.result(run) is not None]
    keys = _most_varied(contents, measured)
    if len(measured) > 1 and keys:
        yield "settings", (_over_two if len(keys) > 1 else _over_one)(contents, measured, *keys)
    if maps:
        label = next(run.label for run in contents.runs if run.name == maps[0].run)
        yield "attention", _attention(maps[0], label)


def _losses(contents: Contents, x_name: str) -> Figure:
    """Plot validation losses and baselines, and for few runs faint training losses."""
    from matplotlib.patheffects import withStroke

    figure, axes = _figure(contents)
    by_bits = contents.by_bits
    for number, run in reversed(list(enumerate(contents.runs))):
        style = _line_style(number)
        if len(contents.runs) <= MAX_TRAINING_CURVES and not by_bits:
            train = run.curves["train"]
            if x := _x_values(run, train, x_name):
                axes.plot(x, train["y"], color=style["color"], linewidth=0.7, alpha=0.4)
        curve = run.curves["bits_per_byte" if by_bits else "val"]
        if x := _x_values(run, curve, x_name):
            axes.plot(x, curve["y"], marker="o" if len(x) == 1 else "", **style)
    left, right = axes.get_xlim()
    for line in contents.baselines:
        y = line.bits_per_byte if by_bits else line.loss
        if y is not None:
            axes.axhline(y, color=REFERENCE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
            axes.annotate(
                line.name, (0, y), xycoords=("axes fraction", "data"), xytext=(2, 2), textcoords="offset points",
                fontsize=7, color=REFERENCE, path_effects=[withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_xlabel(X_LABELS[x_name])
    axes.set_ylabel("bits per byte" if by_bits else "loss, nats per token")
    return figure


def _lines(contents: Contents, quantity: str, title: str) -> Figure:
    figure, axes = _figure(contents)
    for number, run in reversed(list(enumerate(contents.runs))):
        curve = run.curves[quantity]
        axes.plot(_x_values(run, curve, "step"), curve["y"], **{**_line_style(number), "linewidth": 1})
    axes.set_xlabel(X_LABELS["step"])
    axes.set_ylabel(title)
    return figure


def _figure(contents: Contents) -> tuple[Figure, Axes]:
    """Create a figure with a legend of all runs on the right."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(7.5, max(3.8, 0.19 * len(contents.runs) + 0.6)), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e9ecef", linewidth=0.6)
    axes.set_axisbelow(True)
    handles = [Line2D([], [], label=_shorten(run.label), **_line_style(n)) for n, run in enumerate(contents.runs)]
    figure.legend(handles=handles, loc="outside right upper", fontsize=7, frameon=False, handlelength=2.6)
    return figure, axes


def _line_style(number: int) -> dict[str, Any]:
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": dash, "linewidth": 1.4}


def _x_values(run: Entry, curve: Curve, x_name: str) -> list[float]:
    """Return the x values of a curve; empty if they are unknown."""
    if x_name != "flops":
        return curve.get(x_name, [])
    return [] if run.flops_per_token is None else [n * run.flops_per_token for n in curve.get("tokens", [])]


def _most_varied(contents: Contents, measured: Sequence[Entry]) -> list[str]:
    """Return the two settings with the most values, most first; the seed only if nothing else differs."""
    keys = [key for key in contents.keys if key != "seed"] or list(contents.keys)
    return sorted(keys, key=lambda key: -len({format_or_none(run.settings[key]) for run in measured}))[:2]


def _over_one(contents: Contents, measured: Sequence[Entry], key: str) -> Figure:
    """Plot the result of each run over a setting, in the runs' colours."""
    figure, axes = _settings_figure()
    values = _values(measured, key)
    # Runs without a result are the last of all runs, so the others have the same numbers among all runs.
    for number, run in enumerate(measured):
        place = values.index(format_or_none(run.settings[key]))
        axes.plot([place], [contents.result(run) or 0.0], marker="o", color=_line_style(number)["color"])
    _set_ticks(axes.xaxis, key, values)
    axes.set_ylabel(_result_name(contents))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _over_two(contents: Contents, measured: Sequence[Entry], x_key: str, y_key: str) -> Figure:
    """Plot the result over two settings as a heat map; each cell is the mean over the other settings."""
    figure, axes = _settings_figure()
    found: dict[tuple[str, str], list[float]] = {}
    for run in measured:
        cell = (format_or_none(run.settings[y_key]), format_or_none(run.settings[x_key]))
        found.setdefault(cell, []).append(contents.result(run) or 0.0)
    means = {cell: statistics.fmean(results) for cell, results in found.items()}
    columns, rows = _values(measured, x_key), _values(measured, y_key)
    table = [[means.get((row, column), math.nan) for column in columns] for row in rows]
    image = axes.imshow(table, cmap="cividis_r", aspect="auto", origin="lower")
    figure.colorbar(image, label=_result_name(contents))
    middle = (min(means.values()) + max(means.values())) / 2
    for (row, column), mean in means.items() if len(columns) <= 10 else ():
        colour = "black" if mean <= middle else "white"
        place = (columns.index(column), rows.index(row))
        axes.annotate(f"{mean:.3f}", place, ha="center", va="center", fontsize=7, color=colour)
    _set_ticks(axes.xaxis, x_key, columns)
    _set_ticks(axes.yaxis, y_key, rows)
    axes.spines[:].set_visible(False)
    return figure


def _settings_figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), dpi=200, layout="constrained")
    return figure, figure.add_subplot()


def _set_ticks(axis: Axis, key: str, values: Sequence[str]) -> None:
    every = math.ceil(len(values) / 12)
    axis.set_ticks(range(0, len(values), every), [_shorten(value, 16) for value in values[::every]])
    axis.set_label_text(key)


def _result_name(contents: Contents) -> str:
    return contents.judged if contents.by_bits else f"{contents.judged}, nats per token"


def _attention(maps: RunMaps, label: str) -> Figure:
    """Plot the mask and the heads of each layer on the first text; at most eight layers and heads."""
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap
    from matplotlib.figure import Figure

    text = maps.texts[0]
    layers = text.layers[:8]
    heads = min(8, max(len(layer.weights_HxTxS) for layer in layers))
    figure = Figure(figsize=(1.9 * (heads + 1) + 0.5, 2.1 * len(layers) + 0.6), dpi=200, layout="constrained")
    figure.suptitle(
        f"{_shorten(label, 60)}, step {text.step:,}: {_shorten(text.text.replace(chr(10), ' '), 60)!r}", fontsize=8
    )
    shades = LinearSegmentedColormap.from_list("weights", [LOW, HIGH]).with_extremes(bad=MASKED)
    grid = figure.subplots(len(layers), heads + 1, squeeze=False)
    for row, layer in zip(grid, layers, strict=True):
        for axes in row:
            axes.axis("off")
        row[0].imshow(layer.visible_TxS, cmap=ListedColormap([MASKED, VISIBLE]), vmin=0, vmax=1)
        row[0].set_title(f"layer {layer.layer}: {layer.mask}", fontsize=6.5)
        for head, axes in enumerate(row[1 : 1 + len(layer.weights_HxTxS)]):
            weights = layer.weights_HxTxS[head].copy()
            weights[~layer.visible_TxS] = math.nan
            axes.imshow(weights, cmap=shades, vmin=0, vmax=1)
            axes.set_title(f"layer {layer.layer}, head {head}", fontsize=6.5)
    return figure


def _values(measured: Sequence[Entry], key: str) -> list[str]:
    """Return the sorted values of a setting, numbers before strings."""
    found = {format_or_none(run.settings[key]): run.settings[key] for run in measured}
    numbers = {text: value for text, value in found.items() if isinstance(value, (int, float))}
    return sorted(found, key=lambda text: (text not in numbers, numbers.get(text, 0), text))


def _shorten(text: str, max_length: int = MAX_LABEL_LENGTH) -> str:
    """Drop the middle of a long name, as on the page."""
    if len(text) <= max_length:
        return text
    end = int((max_length - 1) * 0.6)
    return f"{text[: max_length - 1 - end]}…{text[-end:]}"
