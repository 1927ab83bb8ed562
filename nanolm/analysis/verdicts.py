"""Which rows of a comparison differ from the best one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nanolm.analysis.comparability import batch_settings
from nanolm.analysis.differences import MIN_POOLED, Difference, Spread, Spreads, find_differences
from nanolm.analysis.metrics import METRICS
from nanolm.analysis.power import seeds_needed
from nanolm.analysis.rows import Row, rank
from nanolm.analysis.statistics import LEVEL, holm_adjust, n_tests_of_best
from nanolm.errors import SettingsError

# Rows that a note names.
MAX_NAMED = 3


def add_verdicts(rows: Sequence[Row], judged: str) -> list[str]:
    """Compare each row with the best of the comparable ones, and return remarks on the tests.

    Only losses are tested: other metrics do not vary over seeds, or change in steps of an evaluation interval.
    """
    is_of_loss = METRICS[judged].is_of_loss
    candidates = [row for row in rows if row.is_comparable and row.estimates[judged].values]
    best = min(candidates, key=lambda row: rank(row, judged), default=None)
    notes = []
    if best is not None and is_of_loss:
        others = [row for row in candidates if row is not best]
        spreads = _test_against(best, others, judged)
        notes = _notes(best, others, spreads, judged)
    for row in rows:
        if row is best:
            row.verdict = "best"
        elif not row.estimates[judged].values:
            row.verdict = ""
        elif not row.is_comparable:
            row.verdict = "incomparable"
        elif row.p_value is None:
            row.verdict = "one seed" if is_of_loss else ""
        else:
            row.verdict = "different" if row.p_value < 1 - LEVEL else "not distinguishable"
    return notes


@dataclasses.dataclass(frozen=True)
class Detection:
    """The number of seeds per row that a difference needs.

    Attributes:
        difference: to detect with 80% power.
        seeds: per row; None above 1,000.
        seeds_of_two: if only two rows are compared.
        spread: that of a run, as rows are tested with it.
        n_rows: number of rows that are compared; 2 for runs of one row.
    """

    difference: float
    seeds: int | None
    seeds_of_two: int | None
    spread: Spread
    n_rows: int


def detect(rows: Sequence[Row], judged: str, difference: float) -> Detection:
    """Return the number of seeds per row with which these rows, or two rows like the only one, need to be compared.

    Raises:
        SettingsError: no row has several seeds, or their losses are equal.
    """
    candidates = [row for row in rows if row.is_comparable and row.estimates[judged].values]
    spread = _spread_of(candidates, judged)
    if not METRICS[judged].is_of_loss:
        raise SettingsError(f"{judged} is not a loss", where="--detect", hint="name a loss first, as --metric val_loss")
    if spread is None:
        found = "no row has several seeds with different losses, so their spread is unknown"
        hint = "train several seeds, as with sweep=seeds or seed=1,2,3"
        raise SettingsError(found, where="--detect", hint=hint)
    n_rows = max(len(candidates), 2)
    n_pooled = spread.n_rows if spread.n_rows >= MIN_POOLED and spread.agrees else 2

    def needed(n_pooled: int, n_rows: int) -> int | None:
        return seeds_needed(difference, spread.value, is_paired=spread.is_paired, n_pooled=n_pooled, n_rows=n_rows)

    return Detection(difference, needed(n_pooled, n_rows), needed(2, 2), spread, n_rows)


def _spread_of(candidates: Sequence[Row], judged: str) -> Spread | None:
    """The spread of pairs if all tested rows are paired, else that within rows."""
    best = min(candidates, key=lambda row: rank(row, judged), default=None)
    if best is None:
        return None
    others = [row for row in candidates if row is not best]
    tested, spreads = find_differences(best.sample(judged), [row.sample(judged) for row in others])
    known = [one for one in tested if one is not None]
    return spreads.paired if known and all(one.is_paired for one in known) else spreads.unpaired


def _test_against(best: Row, others: Sequence[Row], judged: str) -> Spreads:
    """Set the difference to the best row and its corrected p-value, for rows with several seeds."""
    found, spreads = find_differences(best.sample(judged), [row.sample(judged) for row in others])
    tested = [(row, one) for row, one in zip(others, found, strict=True) if one is not None]
    n_rows = len(tested) + 1
    n_tests = [n_tests_of_best(one.p_value, one.freedom, n_rows) for _, one in tested]
    adjusted = holm_adjust([one.p_value for _, one in tested], n_tests)
    for (row, difference), p_value in zip(tested, adjusted, strict=True):
        row.difference, row.p_value = difference, p_value
        if p_value >= 1 - LEVEL and difference.effect:
            row.seeds_needed = _seeds_needed(difference, n_rows)
    return spreads


def _seeds_needed(difference: Difference, n_rows: int) -> int | None:
    """The number of seeds that would detect the measured difference, in this table; at least one more than now."""
    n_pooled = difference.pooled.n_rows if difference.pooled else 2
    needed = seeds_needed(
        abs(difference.effect), difference.spread, is_paired=difference.is_paired, n_pooled=n_pooled, n_rows=n_rows
    )
    return None if needed is None else max(needed, difference.n_seeds + 1)


def _notes(best: Row, others: Sequence[Row], spreads: Spreads, judged: str) -> list[str]:
    tested = [(row, row.difference) for row in others if row.difference is not None]
    notes = []
    if len(tested) > 1 and all(difference.effect == 0 for _, difference in tested):
        notes.append("all rows have the same losses: check that the settings in which they differ have an effect")
    incomplete = [row for row, one in tested if one.is_paired and one.n_unpaired]
    if incomplete:
        notes.append(
            f"{_named(incomplete)}: some seeds have no partner in the other row; the seeds that both have are compared"
        )
    unpaired: dict[str, list[Row]] = {}
    for row, one in tested:
        if not one.is_paired:
            unpaired.setdefault(why_unpaired(best, row), []).append(row)
    notes += [f"{_named(some)}: not paired by seed with the best row, as {reason}" for reason, some in unpaired.items()]
    used = [spreads.paired] if any(one.is_paired for _, one in tested) else []
    used += [spreads.unpaired] if unpaired else []
    notes += [
        f"the spread is not pooled over rows, which differ in it (Brown-Forsythe test, p = {spread.p_value:.2g})"
        for spread in used
        if spread is not None and spread.n_rows >= MIN_POOLED and not spread.agrees
    ]
    close = [row for row, _ in tested if row.p_value is not None and row.p_value >= 1 - LEVEL]
    close.sort(key=lambda row: rank(row, judged))
    notes += [f"{row.describe()}: {describe_verdict(row)}" for row in close[:MAX_NAMED]]
    if len(close) > MAX_NAMED:
        notes.append(f"{len(close) - MAX_NAMED} more rows are not distinguishable from the best")
    return notes


def describe_verdict(row: Row) -> str:
    """Describe that a row is not distinguishable from the best, and how many seeds would be needed."""
    assert row.difference is not None
    n = row.difference.n_seeds
    found = f"not distinguishable from the best with {n} seeds"
    if not row.difference.effect:
        return f"{found}, whose losses it has"
    return f"{found}; {f'about {row.seeds_needed}' if row.seeds_needed else 'over 1,000'} would be needed"


def why_unpaired(best: Row, row: Row) -> str:
    """Describe why two rows are not paired by seed."""
    if row.batches is not None and row.batches == best.batches:
        return "they have fewer than two seeds in common"
    keys = {key for one in (row.runs[0], best.runs[0]) for key in one.settings}
    its, other = (batch_settings(one.runs[0], keys) for one in (row, best))
    if its is None or other is None:
        return "the batches of one are unknown"
    differing = [key for key in its.keys() | other.keys() if its.get(key) != other.get(key)]
    return f"their batches differ ({', '.join(sorted(differing))})"


def _named(rows: Sequence[Row]) -> str:
    names = ", ".join(row.describe() for row in rows[:MAX_NAMED])
    return names if len(rows) <= MAX_NAMED else f"{names} and {len(rows) - MAX_NAMED} more rows"
