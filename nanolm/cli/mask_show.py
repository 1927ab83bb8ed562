"""`nanolm mask show`: draw the attention mask of each layer."""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nanolm import option_types as types
from nanolm import terminal
from nanolm.cli.arguments import add_overrides, add_png, compose
from nanolm.config.mask import layers_by_mask
from nanolm.config.run import Config
from nanolm.errors import SettingsError
from nanolm.option_types import Parser
from nanolm.output_files import write_output_file
from nanolm.plotting import encode, importing_matplotlib

if TYPE_CHECKING:
    import torch

# Up to SQUARES positions, each is drawn as a square; up to HALF_BLOCKS, as half a character; more than that, a
# character represents several positions.
SQUARES = 24
HALF_BLOCKS = 64
# The table of this many positions squared takes 64 MiB.
MAX_LENGTH = 8192

MARGIN = 8
SHADES = "·░▒▓█"
VISIBLE_COLOUR, HIDDEN_COLOUR = "#1f4e79", "#e6eaef"


@dataclasses.dataclass(frozen=True)
class LayerMask:
    """The mask of one or more layers.

    Attributes:
        title: the mask, its settings, its layers, and the documents that it is drawn over.
        visible_TxS: bool; row q, column k is whether query q attends to key k.
    """

    title: str
    visible_TxS: torch.Tensor  # noqa: N815  the name gives the shape

    def describe(self) -> str:
        """Return which share of the positions is visible, and whether the mask is causal."""
        from nanolm.model import masks

        length = len(self.visible_TxS)
        leak = masks.first_future_pair(self.visible_TxS)
        future = "causal" if leak is None else f"not causal: position {leak[0]} attends to {leak[1]}"
        return f"{self.visible_TxS.float().mean():.1%} of {length:,} x {length:,} positions are visible, {future}"


def add_arguments(parser: Parser) -> None:
    parser.describe("Rows are queries and columns are keys.")
    add_overrides(parser)
    help_text = "number of positions to draw (default: size.context_length)"
    parser.add("--length", check=types.COUNT, metavar="N", help=help_text)
    add_png(parser)


def run(arguments: Namespace) -> None:
    """Print the picture of each mask, and write the PNG if one is requested."""
    drawn = layer_masks(compose(arguments).config, arguments.length)
    if arguments.png is not None:
        write_output_file("--png", arguments.png, to_png(drawn))
    parts = ("\n".join([mask.title, mask.describe(), *draw(mask.visible_TxS)]) for mask in drawn)
    terminal.write("\n\n".join(parts))
    if arguments.png is not None:
        terminal.write(f"\nwritten to {arguments.png}")


def layer_masks(config: Config, length: int | None = None) -> list[LayerMask]:
    """Return the different masks of a model, in the order of the layers.

    Args:
        config: checked settings.
        length: number of positions; None is size.context_length.

    Raises:
        SettingsError: the length is too large to draw.
    """
    import torch

    from nanolm.model import masks

    length = config.size.context_length if length is None else length
    if length > MAX_LENGTH:
        raise SettingsError(
            f"{length} positions are too many to draw", where="--length", hint=f"use --length N with N <= {MAX_LENGTH}"
        )
    drawn = []
    for mask, layers in layers_by_mask(config):
        title = f"{masks.describe_mask(mask)}: {masks.describe_layers(layers, config.size.n_layers)}"
        visible_TxS = masks.dense_mask(mask, length)
        if mask.within_documents:
            lengths = example_documents(length)
            documents_T = torch.repeat_interleave(torch.tensor(lengths))
            title += f", over documents of length {', '.join(map(str, lengths))}"
            visible_TxS = visible_TxS & masks.same_document(documents_T[None])[0]
        drawn.append(LayerMask(title, visible_TxS))
    return drawn


def example_documents(length: int) -> list[int]:
    """Divide a number of positions into documents: a half, a third and a sixth of them; none is empty."""
    first, second = length - length // 2, length // 3
    return [part for part in (first, second, length - first - second) if part]


def draw(visible_TxS: torch.Tensor) -> list[str]:
    """Draw a mask as lines of at most 80 characters; queries go down and keys go right."""
    import torch.nn.functional as F

    length = len(visible_TxS)
    if length <= SQUARES:
        rows = (" ".join("■" if visible else "·" for visible in row) for row in visible_TxS.tolist())
        return [*_axes(length, 1, 2, 4), *(_line(str(query), row) for query, row in enumerate(rows))]
    if length <= HALF_BLOCKS:
        even = F.pad(visible_TxS, (0, 0, 0, length % 2))
        pairs = zip(even[0::2].tolist(), even[1::2].tolist(), strict=True)
        rows = ("".join("·▄▀█"[2 * above + below] for above, below in zip(*pair, strict=True)) for pair in pairs)
        note = "a character is 1 key wide and 2 queries high"
        return [*_axes(length, 1, 1, 8), *(_line(str(2 * n), row) for n, row in enumerate(rows)), _line("", note)]
    keys = math.ceil(length / HALF_BLOCKS)
    return [*_axes(math.ceil(length / keys), keys, 1, 8), *_shaded(visible_TxS, keys)]


def _shaded(visible_TxS: torch.Tensor, keys: int) -> Iterator[str]:
    """Draw one character for 2 keys x keys positions; · and █ mean exactly none and exactly all."""
    import torch
    import torch.nn.functional as F

    shares = F.avg_pool2d(visible_TxS[None].float(), (2 * keys, keys), ceil_mode=True)[0]
    shades = torch.where((shares > 0) & (shares < 1), (shares * 3).floor() + 1, shares * 4).int().tolist()
    for n, row in enumerate(shades):
        yield _line(str(n * 2 * keys), "".join(SHADES[shade] for shade in row))
    yield _line("", f"a character is {keys} keys wide and {2 * keys} queries high;")
    yield _line("", "shades show the visible share: · none, ░, ▒, ▓ some, █ all")


def _axes(columns: int, keys: int, width: int, every: int) -> Iterator[str]:
    """Draw the axis of the keys: a number every few columns, each `width` characters wide for `keys` keys."""
    ruler = ""
    for column in range(0, columns, every):
        ruler = ruler.ljust(column * width) + str(column * keys)
    yield " " * MARGIN + "key"
    yield "query".ljust(MARGIN) + ruler


def _line(label: str, text: str) -> str:
    return f"{label:>{MARGIN - 2}}  {text}".rstrip()


def to_png(drawn: Sequence[LayerMask]) -> bytes:
    """Draw the masks as a PNG file, four per row.

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
    colours = LinearSegmentedColormap.from_list("visible", [HIDDEN_COLOUR, VISIBLE_COLOUR])
    for number, mask in enumerate(drawn, start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(mask.visible_TxS.float().numpy(), cmap=colours, vmin=0, vmax=1)
        axes.set_title(mask.title.replace(": ", "\n"), fontsize=10)
        axes.set_xlabel("key")
        axes.set_ylabel("query")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True))
        axes.spines[:].set_visible(False)
    return encode(figure)
