"""`nanolm report`: write an HTML report on runs that opens offline."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm import option_types as types
from nanolm import shell, terminal
from nanolm.analysis.collection import Run, find
from nanolm.cli.arguments import add_plugins, add_runs, output_path
from nanolm.errors import NanolmError, SettingsError, raise_all
from nanolm.option_types import Parser
from nanolm.output_files import is_stdout, write_output_file

if TYPE_CHECKING:
    from nanolm.report.attention_maps import RunMaps
    from nanolm.report.html import MissingMap


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "It has results, curves, settings, samples, attention maps and masks, and the commands that reproduce each "
        "run. Needs plotly; --png needs matplotlib."
    )
    add_runs(parser)
    parser.add("-o", "--output", check=_page_path, default="report.html", metavar="FILE", help="the HTML file")
    parser.add("--png", check=_picture_folder, metavar="FOLDER", help="also write the figures as PNG files")
    help_text = "texts to show attention on (default: the last sample of the best run)"
    parser.add("--text", check=types.text, nargs="+", default=[], metavar="TEXT", help=help_text)
    help_text = "layers to show attention of (default: all)"
    parser.add("--layer", check=types.COUNT_OR_NONE, nargs="+", metavar="N", help=help_text)
    # Each run with maps is a model to load, and some hundred kilobytes on the page.
    help_text = "number of runs with attention maps, best first; 0 for none"
    parser.add("--maps", check=types.COUNT_OR_NONE, default=4, metavar="N", help=help_text)
    add_plugins(parser)


def run(arguments: Namespace) -> None:
    """Write the report and print what was written.

    Raises:
        RunError: there are no runs, or none can be read.
        SettingsError: no run has a given text or layer, a file cannot be written, or a package is missing.
    """
    from nanolm.report.contents import gather
    from nanolm.report.html import to_html

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
    (terminal.say if is_stdout(arguments.output) else terminal.write)("\n".join(map(terminal.visible, lines)))


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


def _page_path(value: str) -> Path:
    """Return the path of the page, whose folder must exist."""
    path = output_path(value)
    if path.is_dir():
        raise SettingsError(f"{path} is a folder", hint=f"-o {path / 'report.html'}")
    if path.parent.is_dir():
        return path
    if path.parent.exists():
        raise SettingsError(f"{path}: {path.parent} is not a folder", hint="name a file in a folder")
    hint = shell.join("mkdir", "-p", shell.path_argument(path.parent))
    raise SettingsError(f"{path}: there is no folder {path.parent}", hint=hint)


def _picture_folder(value: str) -> Path:
    path = output_path(value)
    if path.exists() and not path.is_dir():
        raise SettingsError(f"{path} is not a folder", hint="name a folder")
    return path
