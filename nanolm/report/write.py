"""Write a report on runs: gather its contents, compute attention maps, and write the files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm import shell
from nanolm.analysis.collection import Run
from nanolm.errors import NanolmError, SettingsError, raise_all
from nanolm.output_files import write_output_file
from nanolm.report.contents import gather
from nanolm.report.html import MissingMap, to_html

if TYPE_CHECKING:
    from nanolm.report.attention_maps import RunMaps


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    Attributes:
        texts: to show attention on; empty for the last sample of each run.
        layers: to show attention of; None for all.
        n_maps: number of runs with attention maps, best first.
        plugins: the user's modules that the runs were made with.
        png: folder to write the figures to as PNG files; None for none.
    """

    texts: Sequence[str] = ()
    layers: Sequence[int] | None = None
    # Each run with maps is a model to load, and some hundred kilobytes on the page.
    n_maps: int = 4
    plugins: Sequence[str] = ()
    png: Path | None = None


def write_report(runs: Sequence[Run], output: Path, options: ReportOptions) -> list[str]:
    """Write the report, and return lines about what was written and what is missing.

    Raises:
        RunError: none of the runs can be read.
        SettingsError: no run has a given text or layer, a file cannot be written, or a package is missing.
    """
    contents = gather(runs)
    places = {entry.path: place for place, entry in enumerate(contents.runs)}
    best_first = sorted(runs, key=lambda run: places[str(run.path)])
    maps, without = _attention_maps(best_first, options) if options.n_maps else ([], [])
    page = to_html(contents, maps, without).encode()
    write_output_file("-o", output, page)
    lines = [f"{len(runs)} run{'s' if len(runs) > 1 else ''} in {output}, {len(page) / 1e6:.1f} MB"]
    lines += [f"no attention map of {each.run}: {each.reason}" for each in without if each.is_fault]
    lines += [f"{entry.path}: {fault}" for entry in contents.runs for fault in entry.faults]
    lines += [f"{run.path}: {note}" for run in runs for note in run.notes]
    if options.png is not None:
        from nanolm.report import pictures

        lines += [f"picture: {path}" for path in pictures.write_all(contents, maps, options.png)]
    return lines


def require_page(path: Path) -> Path:
    """Return the path of the page, whose folder must exist.

    Raises:
        SettingsError: it is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise SettingsError(f"{path} is a folder", hint=f"-o {path / 'report.html'}")
    if path.parent.is_dir():
        return path
    if path.parent.exists():
        raise SettingsError(f"{path}: {path.parent} is not a folder", hint="name a file in a folder")
    hint = shell.join("mkdir", "-p", shell.path_argument(path.parent))
    raise SettingsError(f"{path}: there is no folder {path.parent}", hint=hint)


def _attention_maps(runs: Sequence[Run], options: ReportOptions) -> tuple[list[RunMaps], list[MissingMap]]:
    """Compute the attention maps of the first runs that have attention, and collect why others have none.

    Raises:
        NanolmError: a text or layer was given, and no run has it.
    """
    from nanolm.report import attention_maps

    reasons = [(run, attention_maps.why_none(run)) for run in runs]
    without = [MissingMap(run.name, reason) for run, reason in reasons if reason]
    with_attention = [run for run, reason in reasons if not reason][: options.n_maps]
    found, refused = [], []
    for run in with_attention:
        try:
            found.append(attention_maps.run_maps(run, options.texts, options.layers, options.plugins))
        except NanolmError as error:
            refused.append(error)
            without.append(MissingMap(run.name, error.found, is_fault=True))
    if refused and not found and (options.texts or options.layers is not None):
        raise_all(refused)
    return found, without
