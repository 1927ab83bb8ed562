"""`nanolm mask show`: the mask of each layer as a picture, in the terminal and as PNG."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from nanolm import terminal
from nanolm.compose import compose_line
from nanolm.config.checks import check
from nanolm.config.mask import MaskConfig, layers_by_mask
from nanolm.errors import SettingsError, raise_all
from nanolm.files import write_output_file
from nanolm.model import masks
from nanolm.plotting import encode, importing_matplotlib
from nanolm.runs.occupancy import OVERWRITES, require_outside_runs

# A square a position up to here, half a character a position up to there, and beyond it a character stands for many.
SQUARES = 24
HALF_BLOCKS = 64
# A table of so many positions squared takes 64 MiB.
LONGEST = 8192

MARGIN = 8
SHADES = "·░▒▓█"
SEEN_COLOUR, UNSEEN_COLOUR = "#1f4e79", "#e6eaef"


@dataclasses.dataclass(frozen=True)
class LayerMask:
    """A mask that some layers have.

    Attributes:
        title: the mask, its settings, its layers, and the documents that it is drawn over.
        visible_TxT: bool; row q, column k is whether query q sees key k.
    """

    title: str
    visible_TxT: torch.Tensor  # noqa: N815  its shape is in its name

    def in_words(self) -> str:
        """What share of the positions is seen, and whether the future is."""
        length = len(self.visible_TxT)
        leak = masks.first_future_pair(self.visible_TxT)
        future = "none of them in the future" if leak is None else f"and the future: position {leak[0]} sees {leak[1]}"
        return f"{self.visible_TxT.float().mean():.1%} of {length:,} x {length:,} positions are seen, {future}"


def show(
    overrides: Sequence[str], config_dir: str | None = None, length: int | None = None, png: Path | None = None
) -> None:
    """Prints the picture of each mask that the layers of a line have, and writes the PNG where one is asked for.

    Raises:
        SettingsError: the line, the length or the place of the PNG is not as it must be, or matplotlib is missing.
    """
    if png is not None:
        require_outside_runs(png, OVERWRITES)
    drawn = look(overrides, config_dir, length)
    if png is not None:
        write_output_file("--png", png, to_png(drawn))
    terminal.write("\n\n".join("\n".join([mask.title, mask.in_words(), *picture(mask.visible_TxT)]) for mask in drawn))
    if png is not None:
        terminal.write(f"\nwritten to {png}")


def look(overrides: Sequence[str], config_dir: str | None = None, length: int | None = None) -> list[LayerMask]:
    """The masks that differ, in the order of the layers.

    Args:
        overrides: as `nanolm train` takes them.
        config_dir: the user's own folder of YAML files.
        length: positions; None is size.context_length.

    Raises:
        SettingsError: the line or the length is not as it must be.
    """
    config = compose_line(overrides, config_dir).config
    raise_all(check(config))
    positions = config.size.context_length if length is None else length
    if not 1 <= positions <= LONGEST:
        raise SettingsError(
            f"{positions} positions cannot be drawn", where="--length", hint=f"--length N with N from 1 to {LONGEST}"
        )
    return [
        _drawn(mask, masks.describe_layers(layers, config.size.n_layers), positions)
        for mask, layers in layers_by_mask(config)
    ]


def _drawn(mask: MaskConfig, layers: str, positions: int) -> LayerMask:
    title, visible_TxT = f"{masks.describe_mask(mask)}: {layers}", masks.dense_mask(mask, positions)
    if not mask.within_documents:
        return LayerMask(title, visible_TxT)
    lengths = example_documents(positions)
    documents_T = torch.repeat_interleave(torch.tensor(lengths))
    title += f", over documents of length {', '.join(map(str, lengths))}"
    return LayerMask(title, visible_TxT & masks.same_document(documents_T[None])[0])


def example_documents(positions: int) -> list[int]:
    """The lengths of documents that fill so many positions: half of them, a third, a sixth; none is empty."""
    first, second = positions - positions // 2, positions // 3
    return [length for length in (first, second, positions - first - second) if length]


def picture(visible_TxT: torch.Tensor) -> list[str]:
    """The lines of a picture for the terminal, at most 80 characters wide; queries go down and keys go right."""
    length = len(visible_TxT)
    if length <= SQUARES:
        rows = (" ".join("■" if seen else "·" for seen in row) for row in visible_TxT.tolist())
        return [*_axes(length, 1, 2, 4), *(_line(str(query), row) for query, row in enumerate(rows))]
    if length <= HALF_BLOCKS:
        even = F.pad(visible_TxT, (0, 0, 0, length % 2))
        pairs = zip(even[0::2].tolist(), even[1::2].tolist(), strict=True)
        rows = ("".join("·▄▀█"[2 * above + below] for above, below in zip(*pair, strict=True)) for pair in pairs)
        note = "a character is 1 key wide and 2 queries high"
        return [*_axes(length, 1, 1, 8), *(_line(str(2 * n), row) for n, row in enumerate(rows)), _line("", note)]
    keys = math.ceil(length / HALF_BLOCKS)
    return [*_axes(math.ceil(length / keys), keys, 1, 8), *_shaded(visible_TxT, keys)]


def _shaded(visible_TxT: torch.Tensor, keys: int) -> Iterator[str]:
    """A character for 2 keys x keys positions; none and all are kept apart from almost none and almost all."""
    shares = F.avg_pool2d(visible_TxT[None].float(), (2 * keys, keys), ceil_mode=True)[0]
    shades = torch.where((shares > 0) & (shares < 1), (shares * 3).floor() + 1, shares * 4).int().tolist()
    for n, row in enumerate(shades):
        yield _line(str(n * 2 * keys), "".join(SHADES[shade] for shade in row))
    yield _line("", f"a character is {keys} keys wide and {2 * keys} queries high;")
    yield _line("", "its shade is the share that is seen: · none, ░, ▒, ▓ some, █ all")


def _axes(columns: int, keys: int, width: int, every: int) -> Iterator[str]:
    """The keys' axis: a number above every so many of the columns, each `width` characters for `keys` keys."""
    ruler = ""
    for column in range(0, columns, every):
        ruler = ruler.ljust(column * width) + str(column * keys)
    yield " " * MARGIN + "key"
    yield "query".ljust(MARGIN) + ruler


def _line(label: str, text: str) -> str:
    return f"{label:>{MARGIN - 2}}  {text}".rstrip()


def to_png(drawn: Sequence[LayerMask]) -> bytes:
    """The masks side by side, four in a row, as a PNG file.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    with importing_matplotlib():
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.ticker import MaxNLocator
    columns = min(len(drawn), 4)
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(4.2 * columns, 4.6 * rows), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    colours = LinearSegmentedColormap.from_list("seen", [UNSEEN_COLOUR, SEEN_COLOUR])
    for number, mask in enumerate(drawn, start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(mask.visible_TxT.float().numpy(), cmap=colours, vmin=0, vmax=1)
        axes.set_title(mask.title.replace(": ", "\n"), fontsize=10)
        axes.set_xlabel("key")
        axes.set_ylabel("query")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True))
        axes.spines[:].set_visible(False)
    return encode(figure)
