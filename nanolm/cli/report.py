"""`nanolm report`: runs read, their attention looked at, the page and the pictures written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm import shell, terminal
from nanolm.analysis.collection import Run, find
from nanolm.errors import NanolmError, RunError, SettingsError, raise_all
from nanolm.files import write_output_file
from nanolm.report.contents import gather
from nanolm.report.html import Without, to_html
from nanolm.runs.occupancy import OVERWRITES, require_outside_runs

if TYPE_CHECKING:
    from nanolm.report.attention_maps import RunMaps

# Runs that have attention maps, the best first: each is a model to load, and some hundred kilobytes on the page.
MAPS = 4


def make(
    paths: Sequence[str],
    output: Path,
    *,
    png: Path | None = None,
    texts: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    n_maps: int = MAPS,
    plugins: Sequence[str] = (),
) -> list[str]:
    """Writes the report of runs.

    Args:
        paths: runs, or folders of runs.
        output: the HTML file.
        png: a folder for pictures, made where it is not there.
        texts: what attention is looked at over; none: the beginning of the best run's last sample.
        layers: of the maps, counted from 0; None: all.
        n_maps: how many runs have maps, the best first; 0: none.
        plugins: the user's modules that the runs were made with.

    Returns:
        What is to be said about it, in lines.

    Raises:
        RunError: there are no runs, or nothing of them can be read.
        SettingsError: a text or layer that no run has, a file that cannot be written, or a package that is missing.
    """
    raise_all(_wrong_places(output, png))
    terminal.ignore_write_errors()
    runs = find(paths)
    contents = gather(runs)
    places = {entry.path: place for place, entry in enumerate(contents.runs)}
    best_first = sorted(runs, key=lambda run: places[str(run.path)])
    maps, without = _maps(best_first, texts, layers, n_maps, plugins) if n_maps else ([], [])
    page = to_html(contents, maps, without).encode()
    write_output_file("-o", output, page)
    said = [f"{len(runs)} run{'s' if len(runs) > 1 else ''} in {output}, {len(page) / 1e6:.1f} MB"]
    said += [f"no attention map of {each.run}: {each.reason}" for each in without if each.is_fault]
    said += [f"{run.path}: {fault}" for run in contents.runs for fault in run.faults]
    said += [f"{run.path}: {note}" for run in runs for note in run.notes]
    if png is not None:
        from nanolm.report import pictures

        said += [f"picture: {path}" for path in pictures.write_all(contents, maps, png)]
    return said


def _maps(
    runs: Sequence[Run], texts: Sequence[str], layers: Sequence[int] | None, most: int, plugins: Sequence[str]
) -> tuple[list[RunMaps], list[Without]]:
    """The attention of the first runs that have any, and why others have none.

    Raises:
        NanolmError: what was asked for by name, a text or a layer, is to be had of no run.
    """
    from nanolm.report import attention_maps

    reasons = [(run, attention_maps.why_none(run)) for run in runs]
    without = [Without(run.name, reason) for run, reason in reasons if reason]
    with_attention = [run for run, reason in reasons if not reason][:most]
    found, refused = [], []
    for run in with_attention:
        try:
            found.append(attention_maps.of_run(run, texts, layers, plugins))
        except NanolmError as error:
            refused.append(error)
            without.append(Without(run.name, error.found, is_fault=True))
    if refused and not found and (texts or layers is not None):
        raise_all(refused)
    return found, without


def _wrong_places(output: Path, png: Path | None) -> list[NanolmError]:
    """What can be known to fail before anything is read."""
    problems: list[NanolmError] = []
    for path in (output, png):
        if path is not None:
            try:
                require_outside_runs(path, OVERWRITES)
            except RunError as error:
                problems.append(error)
    if output.is_dir():
        problems.append(
            SettingsError(f"{output} is a folder", where=f"-o {output}", hint=f"-o {output / 'report.html'}")
        )
    elif output.parent.exists() and not output.parent.is_dir():
        problems.append(
            SettingsError(f"{output.parent} is no folder", where=f"-o {output}", hint="name a file in a folder")
        )
    elif not output.parent.is_dir():
        problems.append(
            SettingsError(
                f"there is no folder {output.parent}",
                where=f"-o {output}",
                hint=shell.join("mkdir", "-p", shell.path_argument(output.parent)),
            )
        )
    if png is not None and png.exists() and not png.is_dir():
        problems.append(SettingsError(f"{png} is no folder", where=f"--png {png}", hint="name a folder"))
    return problems
