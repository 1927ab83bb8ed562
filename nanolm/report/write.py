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
from nanolm.report.contents import Contents, gather
from nanolm.report.html import MissingMap, to_html

if TYPE_CHECKING:
    from nanolm.report.attention_maps import RunMaps
    from nanolm.report.token_losses import TokenLosses


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    Attributes:
        texts: to show attention on; empty for the last sample of each run.
        layers: to show attention of; None for all.
        n_maps: number of runs with attention maps, best first.
        n_losses: number of runs with losses per token, best first; one per row of seeds, if there are several rows.
        plugins: the user's modules that the runs were made with.
        png: folder to write the figures to as PNG files; None for none.
    """

    texts: Sequence[str] = ()
    layers: Sequence[int] | None = None
    # Each run with maps is a model to load, and some hundred kilobytes on the page.
    n_maps: int = 4
    n_losses: int = 4
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
    losses = _token_losses(best_first, contents, options) if options.n_losses and len(runs) > 1 else None
    page = to_html(contents, maps, without, losses).encode()
    write_output_file("-o", output, page)
    lines = [f"{len(runs)} run{'s' if len(runs) > 1 else ''} in {output}, {len(page) / 1e6:.1f} MB"]
    lines += [f"no attention map of {each.run}: {each.reason}" for each in without if each.is_fault]
    if losses is not None and losses.problem:
        lines.append(f"no losses per token: {losses.problem}")
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


def _token_losses(runs: Sequence[Run], contents: Contents, options: ReportOptions) -> TokenLosses:
    """Score the first tokens of the validation text with the best run of each row; with all runs of a single row."""
    from nanolm.report import token_losses

    entries = {entry.path: entry for entry in contents.runs}
    usable = [run for run in runs if (entry := entries[str(run.path)]).compares and entry.row is not None]
    by_row: dict[int | None, Run] = {}
    for run in usable:
        by_row.setdefault(entries[str(run.path)].row, run)
    chosen = list(by_row.values()) if len(by_row) > 1 else usable
    return token_losses.compute(chosen, max(2, options.n_losses), options.plugins)
