"""`nanolm count --coordinates`: the table and the picture of a coordinate check."""

from __future__ import annotations

import dataclasses
from argparse import Namespace

from nanolm.compose import ComposedCommand
from nanolm.config.checks import check
from nanolm.errors import SettingsError, raise_all
from nanolm.json_text import dump_json
from nanolm.model.totals import known_vocab_size
from nanolm.output_files import write_output_file
from nanolm.plotting import encode, importing_matplotlib
from nanolm.training.coordinates import Coordinate, check_coordinates


def run(arguments: Namespace, line: ComposedCommand) -> None:
    """Run the check, and print or draw the result."""
    raise_all(check(line.config))
    vocab_size = arguments.vocab_size or known_vocab_size(line.config.tokenizer)
    if vocab_size is None:
        raise SettingsError(
            f"the vocabulary size of tokenizer={line.choices['tokenizer']} is unknown until its text is read",
            where="tokenizer",
            hint="give it, for example --vocab-size 65; `nanolm data show` prints it",
        )
    found = check_coordinates(line.config, vocab_size, arguments.steps)
    if arguments.png is not None:
        write_output_file("--png", arguments.png, to_png(found))
    if arguments.json:
        print(dump_json([dataclasses.asdict(coordinate) for coordinate in found]))
    else:
        _print_table(found, arguments.steps)


def _print_table(found: list[Coordinate], steps: int) -> None:
    from nanolm.tables import Console, Table

    widths = list(found[0].sizes)
    headings = ["mean |x|", "step", *(str(width) for width in widths), "exponent"]
    table = Table(headings, "lr" + "r" * (len(widths) + 1))
    for coordinate in found:
        for step in (0, steps):
            exponent = "" if step == 0 or coordinate.exponent is None else f"{coordinate.exponent:+.2f}"
            sizes = (f"{coordinate.sizes[width][step]:.3g}" for width in widths)
            table.add_row(coordinate.name if step == 0 else "", str(step), *sizes, exponent)
    console = Console()
    console.print(table)
    console.print(
        f"mean absolute output of each module by size.d_model; after step {steps} it is about proportional to d_model\n"
        "to the power of the exponent. Exponents near 0 mean that one lr serves all widths"
    )


def to_png(found: list[Coordinate]) -> bytes:
    """Plot the sizes after the last step over the width as a PNG file.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    with importing_matplotlib():
        from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for coordinate in found:
        widths = list(coordinate.sizes)
        axes.loglog(widths, [coordinate.sizes[width][-1] for width in widths], marker="o", label=coordinate.name)
    axes.set_xlabel("d_model")
    axes.set_ylabel("mean |activation|")
    axes.legend(fontsize=6)
    axes.spines[["top", "right"]].set_visible(False)
    return encode(figure)
