"""Comparisons, reports and counts from Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nanolm.analysis import comparison
from nanolm.analysis.collection import find
from nanolm.analysis.comparison import Comparison
from nanolm.analysis.judging import AXES, At
from nanolm.errors import RunError, SettingsError

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def compare(
    paths: Paths,
    *,
    by: str | Sequence[str] = (),
    metric: str | Sequence[str] = (),
    sort: str | None = None,
    target: float | None = None,
    at: tuple[str, float] | None = None,
) -> Comparison:
    """Compare runs; those that differ only in their seed are one row, with mean and 95% confidence interval.

    Args:
        paths: a run, a folder that contains runs, or several of either.
        by: settings to group by; the best row of each group is shown.
        metric: metrics to show; rows are ranked by the first. Empty for all, ranked by the loss on the
            test split if every run has it, else by the validation loss at the last step that all share.
        sort: a metric (best first) or a setting (ascending); None sorts by the first metric.
        target: also show the tokens and seconds needed for this validation loss.
        at: read every validation loss at this cost, such as ("tokens", 5e6); also "flops", "seconds" and "step".

    Raises:
        RunError: a path contains no run.
        SettingsError: a metric or a setting is unknown.

    Example:
        >>> lrs = (0.01, 0.1)
        >>> words = ("model=bigram", "logger=none")
        >>> runs = [nanolm.train(*words, f"optimizer.lr={lr}", max_steps=20, quiet=True) for lr in lrs]
        >>> compared = nanolm.compare(runs, metric="best_val_loss")
        >>> [row.settings["optimizer.lr"] for row in compared.rows]
        [0.1, 0.01]
    """
    if at is not None and at[0] not in AXES:
        raise SettingsError(f"there is no cost {at[0]!r}", where="at", hint=f"one of: {', '.join(AXES)}")
    options: dict[str, Any] = {"metrics": _names(metric), "sort": sort, "by": _names(by), "target": target}
    return comparison.compare(find(_listed(paths)), **options, at=None if at is None else At(*at))


def report(
    paths: Paths,
    output: str | os.PathLike[str] = "report.html",
    *,
    texts: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    n_maps: int = 4,
    n_losses: int = 4,
    plugins: Sequence[str] = (),
) -> Path:
    """Write an HTML report on runs that opens offline, and return its path.

    Args:
        paths: a run, a folder that contains runs, or several of either.
        output: the file, which is replaced if it exists.
        texts: to show attention on; empty for the last sample of each run.
        layers: to show attention of; None for all.
        n_maps: number of runs with attention maps, best first.
        n_losses: number of runs whose losses per token can be compared, best first; 0 for none.
        plugins: your own modules that the runs were made with.

    Raises:
        RunError: a path contains no run, or the output is a file of a run.
        SettingsError: the file cannot be written, or plotly is not installed.
    """
    from nanolm import terminal
    from nanolm.files import user_path
    from nanolm.report.write import ReportOptions, require_page, write_report
    from nanolm.runs.occupancy import require_outside_runs

    page = user_path(output)
    require_outside_runs(page, "nanolm does not overwrite the files of a run")
    options = ReportOptions(texts, layers, n_maps, n_losses, plugins)
    for line in write_report(find(_listed(paths)), require_page(page), options)[1:]:
        terminal.say(line)
    return page


def count(*overrides: str, vocab_size: int | None = None, config_dir: str | None = None) -> dict[str, Any]:
    """Count parameters, FLOPs per token and training memory, by formula; nothing is allocated.

    Args:
        overrides: the words of `nanolm count`, such as "model=gpt2".
        vocab_size: None takes it from the tokenizer's settings.
        config_dir: your own folder of YAML files.

    Returns:
        The object that `nanolm count --json` prints: `sizes`, `parameters`, `flops_per_token` and `memory_bytes`. The
        last three have `parts` with their formulas, and totals: `["parameters"]["total"]`.

    Raises:
        SettingsError: with every mistake in the settings.

    Example:
        >>> nanolm.count("model=gpt2", "size=gpt2", vocab_size=50257)["parameters"]["total"]
        124439808
    """
    from nanolm.api.surroundings import unchanged
    from nanolm.compose import compose_command
    from nanolm.model.totals import count_model

    with unchanged():
        return count_model(compose_command(overrides, config_dir), vocab_size)


def _listed(paths: Paths) -> list[str | os.PathLike[str]]:
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not listed:
        raise RunError("there are no paths", where="paths", hint="name a run, or a folder that contains runs")
    return listed


def _names(names: str | Sequence[str]) -> list[str]:
    """Return names given as a list, or separated by commas as on the command line."""
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
