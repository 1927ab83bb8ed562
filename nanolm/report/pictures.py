"""The pictures of a report as PNG files for a paper, by matplotlib, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanolm.errors import explain_os_error
from nanolm.files import write_output_file
from nanolm.plotting import encode, importing_matplotlib
from nanolm.report.contents import LONGEST_LABEL, Contents, Entry
from nanolm.report.curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from nanolm.report.attention_maps import RunMaps

# Those of page.css, and the dashes of data.js: colours that no kind of colour blindness makes one, then dashes.
COLOURS = ("#0072b2", "#d55e00", "#00805c", "#b4538a", "#b07400", "#2d9bd6", "#7a2a5c", "#6f6f1f")
DASHES = ("-", "--", ":", "-.")
REFERENCE = "#6b7680"
LOW, HIGH, UNSEEN, SEEN = "#e8f1fa", "#08306b", "#eef0f2", "#0b5cad"

PLACES = {
    "step": "step (updates of the weights)",
    "tokens": "tokens trained on",
    "flops": "FLOPs of training",
    "seconds": "seconds of training",
}

# With more runs than this the training losses would hide each other.
FEW = 4


def write_all(contents: Contents, maps: Sequence[RunMaps], folder: Path) -> list[Path]:
    """Writes a PNG for each picture that the runs have something for; makes the folder.

    Raises:
        SettingsError: matplotlib is not installed, or a picture cannot be written.
        PathError: the folder cannot be made.
    """
    with importing_matplotlib():
        import matplotlib.figure  # noqa: F401
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, "the folder cannot be made", where=str(folder), option="--png FOLDER") from error
    written = []
    for name, figure in _figures(contents, maps):
        path = folder / f"{name}.png"
        write_output_file("--png", path, encode(figure), follow_links=False)
        written.append(path)
    return written


def _figures(contents: Contents, maps: Sequence[RunMaps]) -> Iterator[tuple[str, Figure]]:
    measure = "bits_per_byte" if contents.by_bits else "loss"
    for place in PLACES:
        if any(_at(run, run.curves["val"], place) for run in contents.runs):
            yield f"{measure}_by_{place}", _losses(contents, place)
    for quantity, title in (("lr", "learning rate"), ("grad_norm", "gradient norm, before clipping")):
        if any(run.curves[quantity]["y"] for run in contents.runs):
            yield quantity, _lines(contents, quantity, title)
    measured = [run for run in contents.runs if contents.result(run) is not None]
    keys = _widest(contents, measured)
    if len(measured) > 1 and keys:
        yield "settings", _over_two(contents, *keys) if len(keys) > 1 else _over_one(contents, *keys)
    if maps:
        label = next(run.label for run in contents.runs if run.name == maps[0].run)
        yield "attention", _attention(maps[0], label)


def _losses(contents: Contents, place: str) -> Figure:
    """Loss on validation text, with that on training text faintly where there is room, and the reference lines."""
    from matplotlib.patheffects import withStroke

    figure, axes = _figure(contents)
    by_bits = contents.by_bits
    for number, run in reversed(list(enumerate(contents.runs))):
        look = _look(number)
        if len(contents.runs) <= FEW and not by_bits and (x := _at(run, run.curves["train"], place)):
            axes.plot(x, run.curves["train"]["y"], color=look["color"], linewidth=0.7, alpha=0.4)
        curve = run.curves["bits_per_byte" if by_bits else "val"]
        if x := _at(run, curve, place):
            axes.plot(x, curve["y"], marker="o" if len(x) == 1 else "", **look)
    left, right = axes.get_xlim()
    for line in contents.references:
        y = line.bits_per_byte if by_bits else line.loss
        if y is not None:
            axes.axhline(y, color=REFERENCE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
            axes.annotate(
                line.name, (0, y), xycoords=("axes fraction", "data"), xytext=(2, 2), textcoords="offset points",
                fontsize=7, color=REFERENCE, path_effects=[withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_xlabel(PLACES[place])
    axes.set_ylabel("bits per byte" if by_bits else "loss, nats per token")
    return figure


def _lines(contents: Contents, quantity: str, title: str) -> Figure:
    figure, axes = _figure(contents)
    for number, run in reversed(list(enumerate(contents.runs))):
        curve = run.curves[quantity]
        axes.plot(_at(run, curve, "step"), curve["y"], **{**_look(number), "linewidth": 1})
    axes.set_xlabel(PLACES["step"])
    axes.set_ylabel(title)
    return figure


def _figure(contents: Contents) -> tuple[Figure, Axes]:
    """One picture, with a legend of all runs beside it."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(7.5, max(3.8, 0.19 * len(contents.runs) + 0.6)), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e9ecef", linewidth=0.6)
    axes.set_axisbelow(True)
    handles = [Line2D([], [], label=_short(run.label), **_look(n)) for n, run in enumerate(contents.runs)]
    figure.legend(handles=handles, loc="outside right upper", fontsize=7, frameon=False, handlelength=2.6)
    return figure, axes


def _look(number: int) -> dict[str, Any]:
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": dash, "linewidth": 1.4}


def _at(run: Entry, curve: Curve, place: str) -> list[float]:
    """Where the points of a curve lie along an axis; empty where the run does not say."""
    if place != "flops":
        return curve.get(place, [])
    return [] if run.flops_per_token is None else [n * run.flops_per_token for n in curve.get("tokens", [])]


def _widest(contents: Contents, measured: Sequence[Entry]) -> list[str]:
    """The two settings with the most values, the wider first; the seed only where nothing else differs."""
    keys = [key for key in contents.keys if key != "seed"] or list(contents.keys)
    return sorted(keys, key=lambda key: -len({_word(run.settings[key]) for run in measured}))[:2]


def _over_one(contents: Contents, key: str) -> Figure:
    """The result of each run over a setting, as points in the runs' colours."""
    figure, axes = _of_settings()
    measured = [run for run in contents.runs if contents.result(run) is not None]
    values = _values(measured, key)
    for number, run in enumerate(contents.runs):
        result = contents.result(run)
        if result is not None:
            place = values.index(_word(run.settings[key]))
            axes.plot([place], [result], marker="o", color=_look(number)["color"])
    _name_values(axes.xaxis, key, values)
    axes.set_ylabel(_result_name(contents))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _over_two(contents: Contents, across: str, up: str) -> Figure:
    """The result over two settings as a heat map, each cell the mean of its runs whatever their other settings."""
    figure, axes = _of_settings()
    found: dict[tuple[str, str], list[float]] = {}
    measured = [run for run in contents.runs if contents.result(run) is not None]
    for run in measured:
        cell = (_word(run.settings[up]), _word(run.settings[across]))
        found.setdefault(cell, []).append(contents.result(run) or 0.0)
    means = {cell: sum(results) / len(results) for cell, results in found.items()}
    columns, rows = _values(measured, across), _values(measured, up)
    table = [[means.get((row, column), math.nan) for column in columns] for row in rows]
    image = axes.imshow(table, cmap="cividis_r", aspect="auto", origin="lower")
    figure.colorbar(image, label=_result_name(contents))
    middle = (min(means.values()) + max(means.values())) / 2
    for (row, column), mean in means.items() if len(columns) <= 10 else ():
        colour = "black" if mean <= middle else "white"
        place = (columns.index(column), rows.index(row))
        axes.annotate(f"{mean:.3f}", place, ha="center", va="center", fontsize=7, color=colour)
    _name_values(axes.xaxis, across, columns)
    _name_values(axes.yaxis, up, rows)
    axes.spines[:].set_visible(False)
    return figure


def _of_settings() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), dpi=200, layout="constrained")
    return figure, figure.add_subplot()


def _name_values(axis: Axis, key: str, values: Sequence[str]) -> None:
    every = math.ceil(len(values) / 12)
    axis.set_ticks(range(0, len(values), every), [_short(value, 16) for value in values[::every]])
    axis.set_label_text(key)


def _result_name(contents: Contents) -> str:
    return "bits per byte" if contents.by_bits else "best val loss, nats per token"


def _attention(maps: RunMaps, label: str) -> Figure:
    """Every head of every layer over the first text, and beside them the mask; eight layers and heads at most."""
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap
    from matplotlib.figure import Figure

    text = maps.texts[0]
    layers = text.layers[:8]
    heads = min(8, max(len(layer.weights_HxTxT) for layer in layers))
    figure = Figure(figsize=(1.9 * (heads + 1) + 0.5, 2.1 * len(layers) + 0.6), dpi=200, layout="constrained")
    figure.suptitle(
        f"{_short(label, 60)}, step {text.step:,}: {_short(text.text.replace(chr(10), ' '), 60)!r}", fontsize=8
    )
    shades = LinearSegmentedColormap.from_list("weights", [LOW, HIGH]).with_extremes(bad=UNSEEN)
    grid = figure.subplots(len(layers), heads + 1, squeeze=False)
    for row, layer in zip(grid, layers, strict=True):
        for axes in row:
            axes.axis("off")
        row[0].imshow(layer.visible_TxT, cmap=ListedColormap([UNSEEN, SEEN]), vmin=0, vmax=1)
        row[0].set_title(f"layer {layer.layer}: {layer.mask}", fontsize=6.5)
        for head, axes in enumerate(row[1 : 1 + len(layer.weights_HxTxT)]):
            weights = layer.weights_HxTxT[head].copy()
            weights[~layer.visible_TxT] = math.nan
            axes.imshow(weights, cmap=shades, vmin=0, vmax=1)
            axes.set_title(f"layer {layer.layer}, head {head}", fontsize=6.5)
    return figure


def _values(measured: Sequence[Entry], key: str) -> list[str]:
    """The values of a setting, numbers by size and before words."""
    found = {_word(run.settings[key]): run.settings[key] for run in measured}
    numbers = {word: value for word, value in found.items() if isinstance(value, (int, float))}
    return sorted(found, key=lambda word: (word not in numbers, numbers.get(word, 0), word))


def _word(value: object) -> str:
    return "none" if value is None else str(value)


def _short(text: str, longest: int = LONGEST_LABEL) -> str:
    """A long name with its middle left out, as on the page."""
    if len(text) <= longest:
        return text
    end = int((longest - 1) * 0.6)
    return f"{text[: longest - 1 - end]}…{text[-end:]}"
