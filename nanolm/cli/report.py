"""`nanolm report`: write an HTML report on runs that opens offline."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm import option_types as types
from nanolm import shell, terminal
from nanolm.analysis.collection import Run, find
from nanolm.cli.arguments import add_plugins, add_runs
from nanolm.errors import NanolmError, RunError, SettingsError, raise_all
from nanolm.files import is_stdout, write_output_file
from nanolm.option_types import Parser
from nanolm.runs.occupancy import OVERWRITES, require_outside_runs

if TYPE_CHECKING:
    from nanolm.report.attention_maps import RunMaps
    from nanolm.report.html import MissingMap


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(
        "It has results, curves, settings, samples, attention maps and masks, and the commands that reproduce each "
        "run. Needs plotly; --png needs matplotlib."
    )
    add_runs(parser)
    parser.add(
        "-o",
        "--output",
        check=types.path,
        default=Path("report.html"),
        metavar="FILE",
        help="the HTML file (default: report.html)",
    )
    parser.add("--png", check=types.path, metavar="FOLDER", help="also write the figures as PNG files")
    parser.add(
        "--text",
        check=types.text,
        nargs="+",
        default=[],
        metavar="TEXT",
        help="texts to show attention on (default: the last sample of the best run)",
    )
    parser.add(
        "--layer", check=types.COUNT_OR_NONE, nargs="+", metavar="N", help="layers to show attention of (default: all)"
    )
    # Each run with maps is a model to load, and some hundred kilobytes on the page.
    parser.add(
        "--maps",
        check=types.COUNT_OR_NONE,
        default=4,
        metavar="N",
        help="number of runs with attention maps, best first; 0 for none (default: 4)",
    )
    add_plugins(parser)


def run(arguments: Namespace) -> int:
    """Write the report and print what was written.

    Raises:
        RunError: there are no runs, or none can be read.
        SettingsError: no run has a given text or layer, a file cannot be written, or a package is missing.
    """
    from nanolm.report.contents import gather
    from nanolm.report.html import to_html

    raise_all(_check_places(arguments.output, arguments.png))
    terminal.ignore_write_errors()
    runs = find(arguments.runs)
    contents = gather(runs)
    places = {entry.path: place for place, entry in enumerate(contents.runs)}
    best_first = sorted(runs, key=lambda run: places[str(run.path)])
    maps, without = _attention_maps(best_first, arguments) if arguments.maps else ([], [])
    page = to_html(contents, maps, without).encode()
    write_output_file("-o", arguments.output, page)
    lines = [f"{len(runs)} run{'s' if len(runs) > 1 else ''} in {arguments.output}, {len(page) / 1e6:.1f} MB"]
    lines += [f"no attention map of {each.run}: {each.reason}" for each in without if each.is_fault]
    lines += [f"{entry.path}: {fault}" for entry in contents.runs for fault in entry.faults]
    lines += [f"{run.path}: {note}" for run in runs for note in run.notes]
    if arguments.png is not None:
        from nanolm.report import pictures

        lines += [f"picture: {path}" for path in pictures.write_all(contents, maps, arguments.png)]
    (terminal.say if is_stdout(arguments.output) else terminal.write)("\n".join(lines))
    return 0


def _attention_maps(runs: Sequence[Run], arguments: Namespace) -> tuple[list[RunMaps], list[MissingMap]]:
    """Compute the attention maps of the first runs that have attention, and collect why others have none.

    Raises:
        NanolmError: a text or layer was given, and no run has it.
    """
    from nanolm.report import attention_maps
    from nanolm.report.html import MissingMap

    reasons = [(run, attention_maps.why_none(run)) for run in runs]
    without = [MissingMap(run.name, reason) for run, reason in reasons if reason]
    with_attention = [run for run, reason in reasons if not reason][: arguments.maps]
    found, refused = [], []
    for run in with_attention:
        try:
            found.append(attention_maps.run_maps(run, arguments.text, arguments.layer, arguments.plugins))
        except NanolmError as error:
            refused.append(error)
            without.append(MissingMap(run.name, error.found, is_fault=True))
    if refused and not found and (arguments.text or arguments.layer is not None):
        raise_all(refused)
    return found, without


def _check_places(output: Path, png: Path | None) -> list[NanolmError]:
    """Find every mistake in the paths to write before any run is read."""
    problems: list[NanolmError] = []
    for path in (output, png):
        if path is not None:
            try:
                require_outside_runs(path, OVERWRITES)
            except RunError as error:
                problems.append(error)
    found, hint = "", "name a file in a folder"
    if output.is_dir():
        found, hint = f"{output} is a folder", f"-o {output / 'report.html'}"
    elif output.parent.exists() and not output.parent.is_dir():
        found = f"{output.parent} is not a folder"
    elif not output.parent.is_dir():
        found = f"there is no folder {output.parent}"
        hint = shell.join("mkdir", "-p", shell.path_argument(output.parent))
    if found:
        problems.append(SettingsError(found, where=f"-o {output}", hint=hint))
    if png is not None and png.exists() and not png.is_dir():
        problems.append(SettingsError(f"{png} is not a folder", where=f"--png {png}", hint="name a folder"))
    return problems
