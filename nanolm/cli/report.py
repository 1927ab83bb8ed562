"""`nanolm report`: write an HTML report on runs that opens offline."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from nanolm import option_types as types
from nanolm import terminal
from nanolm.analysis.collection import find
from nanolm.cli.arguments import add_plugins, add_runs, output_path
from nanolm.errors import SettingsError
from nanolm.option_types import Parser
from nanolm.output_files import is_stdout


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "It has results, curves, settings, samples, losses per token, attention maps and masks, and the commands "
        "that reproduce each run. Needs plotly; --png needs matplotlib."
    )
    add_runs(parser)
    parser.add("-o", "--output", check=_page_path, default="report.html", metavar="FILE", help="the HTML file")
    parser.add("--png", check=_picture_folder, metavar="FOLDER", help="also write the figures as PNG files")
    help_text = "texts to show attention on (default: the last sample of the best run)"
    parser.add("--text", check=types.text, nargs="+", default=[], metavar="TEXT", help=help_text)
    help_text = "layers to show attention of (default: all)"
    parser.add("--layer", check=types.COUNT_OR_NONE, nargs="+", metavar="N", help=help_text)
    help_text = "number of runs with attention maps, best first; 0 for none"
    parser.add("--maps", check=types.COUNT_OR_NONE, default=4, metavar="N", help=help_text)
    help_text = "number of runs whose losses per token can be compared, best first; 0 for none"
    parser.add("--token-losses", check=types.COUNT_OR_NONE, default=4, metavar="N", help=help_text)
    add_plugins(parser)


def run(arguments: Namespace) -> None:
    """Write the report and print what was written."""
    from nanolm.report.write import ReportOptions, write_report

    terminal.ignore_write_errors()
    options = ReportOptions(
        texts=arguments.text,
        layers=arguments.layer,
        n_maps=arguments.maps,
        n_losses=arguments.token_losses,
        plugins=arguments.plugins,
        png=arguments.png,
    )
    lines = write_report(find(arguments.runs), arguments.output, options)
    (terminal.say if is_stdout(arguments.output) else terminal.write)("\n".join(map(terminal.visible, lines)))


def _page_path(value: str) -> Path:
    """Return the path of the page, whose folder must exist."""
    from nanolm.report.write import require_page

    return require_page(output_path(value))


def _picture_folder(value: str) -> Path:
    path = output_path(value)
    if path.exists() and not path.is_dir():
        raise SettingsError(f"{path} is not a folder", hint="name a folder")
    return path
