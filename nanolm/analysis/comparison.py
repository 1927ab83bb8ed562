"""Runs side by side: which of them are one experiment, what each came to, and which of them differ beyond chance."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nanolm.analysis import metrics as figures
from nanolm.analysis.collection import Run, differing, told_apart, values_of
from nanolm.config.roles import affects_results
from nanolm.errors import NanolmError, SettingsError, nearest, raise_all
from nanolm.runs.summary import Summary
from nanolm.wording import LOSSY

# Two-sided, for intervals and for the test.
LEVEL = 0.95

SEES_FUTURE = "a mask that sees the future: not a loss of next-token prediction"


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure that rows have.

    Attributes:
        heading: over its column; a line end where it may be broken.
        is_of_loss: whether it is a loss or comes from one, so that its spread over seeds is of interest.
        per_token: whether it compares only between runs with the same tokens.
        more_is_better: which end is the best.
    """

    heading: str
    is_of_loss: bool = False
    per_token: bool = False
    more_is_better: bool = False


METRICS = {
    "best_val_loss": Metric("val loss\nbest", is_of_loss=True, per_token=True),
    "final_val_loss": Metric("val loss\nfinal", is_of_loss=True, per_token=True),
    "best_ema_val_loss": Metric("val loss\nof EMA", is_of_loss=True, per_token=True),
    "bits_per_byte": Metric("bits per\nbyte", is_of_loss=True),
    "perplexity": Metric("perplexity", is_of_loss=True, per_token=True),
    "parameters": Metric("param-\neters"),
    "tokens": Metric("tokens"),
    "flops": Metric("FLOPs"),
    "seconds": Metric("seconds"),
    "tokens_per_second": Metric("tokens\n/s", more_is_better=True),
    "tokens_to_target": Metric("tokens to\n{target:g}"),
    "seconds_to_target": Metric("seconds to\n{target:g}"),
}
TO_TARGET = ("tokens_to_target", "seconds_to_target")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure over seeds.

    Attributes:
        mean: over `values`; None where there are none.
        interval: half the width of the 95% interval of the mean, by Student's t; None with fewer than two values.
        values: one a seed, of those seeds that have one.
    """

    mean: float | None
    interval: float | None
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs that differ by their seed at most.

    Attributes:
        settings: what tells it apart from the other rows, by dotted key or group.
        runs: all of them, whatever became of them.
        n_seeds: different seeds among the runs that the figures are of: those completed, or all where none is.
        status: `completed`, or how many runs are what.
        estimates: by metric.
        n_reached: of the seeds that have figures, those that came to the target.
        best_of: settings that it is the best of, where rows are grouped.
        is_lossless: False: <unk> hides text.
        sees_future: whether its mask does.
        compares: whether its judged figure can be held against the other rows'.
        is_best: whether it is the first of those that compare.
        p_value: of no difference from the best row, by Welch's t test, adjusted for the number of rows that are tested
            against it (Holm); None where the test cannot be made.
        verdict: `best`, `apart`, `not apart`, `one seed`, `does not compare`, or nothing where there is no figure.
    """

    settings: dict[str, Any]
    runs: tuple[Run, ...]
    n_seeds: int
    status: str
    estimates: dict[str, Estimate]
    n_reached: int = 0
    best_of: int = 1
    is_lossless: bool = True
    sees_future: bool = False
    compares: bool = True
    is_best: bool = False
    p_value: float | None = None
    verdict: str = ""


@dataclasses.dataclass(frozen=True)
class Reference:
    """What needs no training: counted tokens and pairs, and compressors, on the same validation text.

    Attributes:
        name: with the text or the tokenizer where there are several; each name is there once.
        loss: nats per token; None where tokens differ between the runs.
        bits_per_byte: of the same bytes.
    """

    name: str
    loss: float | None
    bits_per_byte: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything that the table says.

    Attributes:
        metrics: the figures to show; the first is what rows are ordered and judged by.
        by: the keys that rows are grouped by.
        target: a loss, or bits per byte where these are judged.
        notes: what a reader must know beside the figures.
    """

    metrics: tuple[str, ...]
    rows: list[Row]
    references: list[Reference]
    by: tuple[str, ...]
    target: float | None
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class _Measured:
    """A run, its figures by metric, and what it compares with."""

    run: Run
    values: dict[str, float | None]
    seed: Any


def compare(
    runs: Sequence[Run],
    *,
    metrics: Sequence[str] = (),
    sort: str | None = None,
    by: Sequence[str] = (),
    target: float | None = None,
) -> Comparison:
    """Lays runs side by side, those that differ only by their seed as one row.

    Grouped by some settings, each row is the best of those that have the same values for them: what is tuned beside
    a comparison is tuned for each side. Losses per token are left out where tokens or validation texts differ.

    Args:
        metrics: of METRICS, the first one being judged; none: all, judged by the best validation loss.
        sort: a metric, a setting or a group; None: the judged metric. Metrics go from the best, settings upward.
        by: settings or groups.
        target: what the validation loss is to come down to; in bits per byte where these are judged.

    Raises:
        SettingsError: a metric, a column or a setting is not known, or the target is of losses that do not compare.
    """
    _require_metrics(metrics, sort, target)
    notes, problem = comparability(runs)
    if problem is not None and sort in METRICS and METRICS[sort].per_token:
        raise SettingsError(f"{sort} is a loss per token, and {problem}", where="--sort", hint="--sort bits_per_byte")
    chosen = _chosen_metrics(metrics, problem is not None, target is not None)
    judged = chosen[0]
    if problem is not None and target is not None and list(metrics[:1]) != ["bits_per_byte"]:
        raise SettingsError(
            f"--target {target:g} is a loss per token, and {problem}",
            where="--target",
            hint="give it in bits per byte: --metric bits_per_byte --target ...",
        )
    measured, faults = _measure(runs, target, "bits_per_byte" if judged == "bits_per_byte" else "loss")
    by_values = dict(values_of(name, runs) for name in by)
    by_run = {id(run): tuple(values[at] for values in by_values.values()) for at, run in enumerate(runs)}
    rows = [_row(group) for group in _grouped(measured, by_run)]
    rows = _told_apart(rows, list(by_values), by_run)
    rows = _held_together(rows, judged, texts_differ=len(texts_of(runs)) > 1)
    if by:
        rows = _best_of_each(rows, judged, list(by_values))
    rows = _judged(rows, judged)
    rows = _sorted(rows, sort or judged)
    n_repeats = sum(len(_counted(row.runs)) - row.n_seeds for row in rows)
    if n_repeats:
        which = "1 run repeats" if n_repeats == 1 else f"{n_repeats} runs repeat"
        notes.append(f"{which} the settings and the seed of another: averaged, and one seed")
    if any(row.sees_future for row in rows):
        notes.append(f"† {SEES_FUTURE}")
    if any(not row.is_lossless for row in rows):
        notes.append(f"* {LOSSY}")
    return Comparison(
        tuple(chosen), rows, _references(measured, problem is None), tuple(by_values), target, notes + faults
    )


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95% interval of a mean, by Student's t; None with fewer than two values."""
    if len(values) < 2:
        return None
    from scipy import special

    n = len(values)
    return float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * statistics.stdev(values) / math.sqrt(n)


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The p value of equal means, two-sided, by Welch's t test (Welch 1947); None with fewer than two values a side.

    Values without any spread, of a model that has no chance in it, differ surely or not at all.
    """
    if min(len(first), len(second)) < 2:
        return None
    difference = statistics.fmean(first) - statistics.fmean(second)
    shares = [statistics.variance(values) / len(values) for values in (first, second)]
    if not sum(shares):
        return float(difference == 0)
    from scipy import special

    freedom = sum(shares) ** 2 / sum(
        share**2 / (len(values) - 1) for share, values in zip(shares, (first, second), strict=True)
    )
    return 2 * float(special.stdtr(freedom, -abs(difference) / math.sqrt(sum(shares))))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number, so that all that lie under a level are right at that level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, at in enumerate(order):
        highest = max(highest, min((len(p_values) - place) * p_values[at], 1.0))
        adjusted[at] = highest
    return adjusted


def _require_metrics(names: Sequence[str], sort: str | None, target: float | None) -> None:
    problems: list[NanolmError] = [
        SettingsError(f"there is no metric {name!r}", where="--metric", hint=near(name, METRICS))
        for name in names
        if name not in METRICS
    ]
    problems += [
        SettingsError(f"{name} is to a target", where=flag, hint="name one, as in --target 1.88")
        for flag, name in [*(("--metric", name) for name in names), ("--sort", sort)]
        if name in TO_TARGET and target is None
    ]
    if target is not None and not 0 < target < math.inf:
        problems.append(
            SettingsError(f"--target {target} is no loss", where="--target", hint="a number above 0, such as 1.88")
        )
    raise_all(problems)


def comparability(runs: Sequence[Run]) -> tuple[list[str], str | None]:
    """What is to be said of it, and why losses per token do not compare; None where they do."""
    texts = texts_of(runs)
    kinds = {run.summary.tokenizer for run in runs if run.summary.tokenizer}
    scored = {run.summary.val_scored_tokens for run in runs if run.summary.val_scored_tokens}
    if len(texts) > 1:
        problem = f"the runs are scored on {len(texts)} different validation texts"
        advice = (
            "only bits per byte are shown, each run's on its own text: compare them with that text's reference lines"
        )
        return [f"{problem}: losses do not compare; {advice}"], problem
    if len(kinds) > 1:
        problem = f"the runs have {len(kinds)} different tokenizers"
        return [f"{problem}: losses per token do not compare; bits per byte of the same text do"], problem
    if len(scored) > 1:
        problem = "the runs score different parts of the validation text (trainer.sampling)"
        return [f"{problem}: losses per token compare only roughly, and bits per byte are shown"], problem
    return [], None


def texts_of(runs: Sequence[Run]) -> set[str]:
    """The different validation texts: what was read, and how it was split."""
    return {text for run in runs if (text := text_of(run)) is not None}


def text_of(run: Run) -> str | None:
    """Stands for the validation text of a run; None where its files do not say."""
    if not run.summary.corpus or not run.settings:
        return None
    split = {key: run.settings.get(f"dataset.{key}") for key in ("val_fraction", "test_fraction", "split_by")}
    if split["split_by"] != "fraction":
        split["split_seed"] = run.settings.get("dataset.split_seed")
    return repr([run.summary.corpus, split])


def _chosen_metrics(asked: Sequence[str], only_bits: bool, has_target: bool) -> list[str]:
    """What is shown, the judged one first."""
    chosen = list(dict.fromkeys([*asked, *TO_TARGET] if asked else METRICS))
    if not has_target:
        chosen = [name for name in chosen if name not in TO_TARGET]
    if only_bits:
        chosen = [name for name in chosen if not METRICS[name].per_token]
        if "bits_per_byte" not in asked:
            chosen = ["bits_per_byte", *(name for name in chosen if name != "bits_per_byte")]
    return chosen


def _measure(runs: Sequence[Run], target: float | None, figure: str) -> tuple[list[_Measured], list[str]]:
    measured, faults = [], []
    for run in runs:
        found = figures.of(run)
        values: dict[str, float | None] = {name: getattr(found, name, None) for name in METRICS}
        try:
            first = None if target is None else figures.reached(run, target, figure)
        except NanolmError as error:
            first = None
            found = dataclasses.replace(found, fault=error.found)
        if first is not None:
            values |= {"tokens_to_target": first.tokens, "seconds_to_target": first.seconds}
        measured.append(_Measured(run, values, _seed(run)))
        faults += [f"{run.name}: {fault}" for fault in dict.fromkeys((*run.faults, found.fault, *run.notes)) if fault]
    return measured, faults


def _grouped(measured: Sequence[_Measured], by_run: dict[int, tuple[Any, ...]]) -> list[list[_Measured]]:
    """Runs that differ only by their seed, together, unless by what rows are grouped by, which may be the seed.

    One whose settings cannot be read stands alone.
    """
    apart = differing([one.run for one in measured])
    keys = [key for key in apart if key != "seed" and affects_results(key)]
    groups: dict[str, list[_Measured]] = {}
    for one in measured:
        run = one.run
        values = [*by_run[id(run)], *(run.settings.get(key) for key in keys)]
        own = run.settings and [values, text_of(run), run.summary.tokenizer]
        groups.setdefault(repr(own or str(run.path)), []).append(one)
    return list(groups.values())


def _row(group: Sequence[_Measured]) -> Row:
    runs = tuple(one.run for one in group)
    counted = _counted(runs)
    by_seed: dict[Any, list[_Measured]] = {}
    for one in (one for one in group if one.run in counted):
        by_seed.setdefault(one.seed, []).append(one)
    counts = Counter(run.status for run in runs)
    if len(counts) == 1:
        status = runs[0].status
    else:
        status = ", ".join(f"{counts[status]} {status}" for status in sorted(counts, key=lambda s: s != "completed"))
    estimates = {name: _estimate([_mean(ones, name) for ones in by_seed.values()]) for name in METRICS}
    return Row(
        settings={},
        runs=runs,
        n_seeds=len(by_seed),
        status=status,
        estimates=estimates,
        n_reached=len(estimates["tokens_to_target"].values),
        is_lossless=not any(run.summary.is_lossy for run in runs),
        sees_future=any(run.summary.sees_future for run in runs),
    )


def _counted(runs: Sequence[Run]) -> list[Run]:
    """The runs that the figures are of: those completed, or all where none is."""
    return [run for run in runs if run.status == "completed"] or list(runs)


def _mean(ones: Sequence[_Measured], name: str) -> float | None:
    values = [value for one in ones if (value := one.values[name]) is not None]
    return statistics.fmean(values) if values else None


def _estimate(by_seed: Sequence[float | None]) -> Estimate:
    values = tuple(value for value in by_seed if value is not None)
    return Estimate(statistics.fmean(values) if values else None, interval(values), values)


def _best_of_each(rows: Sequence[Row], judged: str, by: Sequence[str]) -> list[Row]:
    """Of each group its best row, with the settings that it was chosen by: they are part of what is shown."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(repr([row.settings[key] for key in by]), []).append(row)
    if any(len(texts_of([run for row in group for run in row.runs])) > 1 for group in groups.values()):
        raise SettingsError(
            "each group's best is asked for, and there are groups of several validation texts",
            where="--by",
            hint="name the runs of one text, or leave out --by",
        )
    return [
        dataclasses.replace(min(group, key=lambda row: (not row.compares, _rank(row, judged))), best_of=len(group))
        for group in groups.values()
    ]


def _told_apart(rows: Sequence[Row], by: Sequence[str], by_run: dict[int, tuple[Any, ...]]) -> list[Row]:
    """With the settings that tell the rows apart, those that they are grouped by first."""
    first = [row.runs[0] for row in rows]
    apart = (
        {key: values for key, values in told_apart(first).items() if key not in ("seed", *by)} if len(rows) > 1 else {}
    )
    return [
        dataclasses.replace(
            row,
            settings=dict(zip(by, by_run[id(row.runs[0])], strict=True)) | {key: apart[key][at] for key in apart},
        )
        for at, row in enumerate(rows)
    ]


def odd_ones(summaries: Sequence[Summary]) -> list[bool]:
    """Of which runs the loss is not to be held against the others'.

    They have a mask that sees the future, where others do not, or hide text behind <unk>, where tokenizers differ.
    """
    # One that never began has no say.
    known = [summary for summary in summaries if summary.tokenizer]
    all_see_future = all(summary.sees_future for summary in known)
    n_tokenizers = len({summary.tokenizer for summary in known})
    return [
        bool(summary.sees_future and not all_see_future) or bool(summary.is_lossy and n_tokenizers > 1)
        for summary in summaries
    ]


def _held_together(rows: Sequence[Row], judged: str, texts_differ: bool) -> list[Row]:
    """With what of them compares."""
    is_of_loss = METRICS[judged].is_of_loss
    odd = odd_ones([row.runs[0].summary for row in rows])
    return [
        dataclasses.replace(row, compares=bool(row.runs[0].settings) and not (is_of_loss and (is_odd or texts_differ)))
        for row, is_odd in zip(rows, odd, strict=True)
    ]


def _judged(rows: Sequence[Row], judged: str) -> list[Row]:
    """With each row's place beside the best of those that compare."""
    candidates = [row for row in rows if row.compares and row.estimates[judged].values]
    best = min(candidates, key=lambda row: _rank(row, judged), default=None)
    p_values = {} if best is None else _p_values(best, [row for row in candidates if row is not best], judged)
    found = []
    for row in rows:
        verdict, p_value = "", p_values.get(id(row))
        if row is best:
            verdict = "best"
        elif not row.estimates[judged].values:
            verdict = ""
        elif best is None or not row.compares:
            verdict = "does not compare"
        elif p_value is None:
            verdict = "one seed" if METRICS[judged].is_of_loss else ""
        else:
            verdict = "apart" if p_value < 1 - LEVEL else "not apart"
        found.append(dataclasses.replace(row, is_best=row is best, verdict=verdict, p_value=p_value))
    return found


def _p_values(best: Row, others: Sequence[Row], judged: str) -> dict[int, float]:
    """By the id of each row that can be tested against the best, adjusted for the number of such rows.

    Only losses are: other figures have no spread over seeds, or go in steps from one evaluation to the next.
    """
    if not METRICS[judged].is_of_loss:
        return {}
    tested = {id(row): welch(best.estimates[judged].values, row.estimates[judged].values) for row in others}
    known = {key: p_value for key, p_value in tested.items() if p_value is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def _sorted(rows: Sequence[Row], column: str) -> list[Row]:
    if column in METRICS:
        # A run whose settings cannot be read stands below all others, whatever its figures.
        return sorted(rows, key=lambda row: (not row.runs[0].settings, _rank(row, column)))
    keys = {key.rsplit(".", 1)[-1]: key for row in rows for key in row.settings}
    keys |= {key: key for row in rows for key in row.settings}
    if column not in keys:
        raise SettingsError(
            f"there is no column {column!r} to sort by", where="--sort", hint=near(column, [*METRICS, *keys])
        )
    return sorted(rows, key=lambda row: _order(row.settings[keys[column]]))


def _rank(row: Row, name: str) -> float:
    mean = row.estimates[name].mean
    if mean is None or math.isnan(mean):
        return math.inf
    return -mean if METRICS[name].more_is_better else mean


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers before words, and nothing last."""
    if value is None:
        return (2, 0.0, "")
    if isinstance(value, int | float):
        return (0, float(value), "")
    return (1, 0.0, str(value))


def _references(measured: Sequence[_Measured], with_losses: bool) -> list[Reference]:
    """The reference lines of each validation text, those by counting of each tokenizer, the weakest first."""
    # Of which text a run without settings is cannot be said.
    measured = [one for one in measured if one.run.settings]
    runs = [one.run for one in measured]
    by_text = {text_of(run): run for run in reversed(runs)}
    n_kinds = len({run.summary.tokenizer for run in runs if run.summary.tokenizer})
    texts = _labels("dataset", "corpus", by_text) if len(texts_of(runs)) > 1 else {}
    tokenizers = {
        text: _labels("tokenizer", "tokenizer", {run.summary.tokenizer: run for run in runs if text_of(run) == text})
        for text in (by_text if n_kinds > 1 else ())
    }
    found: dict[tuple[Any, ...], Reference] = {}
    for one in measured:
        run, text, kind = one.run, text_of(one.run), one.run.summary.tokenizer
        of_text = [texts[text]] if texts else []
        of_tokens = [*of_text, tokenizers[text][kind]] if tokenizers else of_text
        loss, bits = one.values["best_val_loss"], one.values["bits_per_byte"]
        # Bits per byte that a nat per token is on this text; a run that was never scored cannot say.
        ratio = bits / loss if loss and bits else None
        for name, nats in run.summary.baseline_losses.items():
            mark = "*" if run.summary.is_lossy else ""
            line = Reference(_named(name, of_tokens) + mark, nats, None if ratio is None else nats * ratio)
            _keep_fuller(found, (text, kind, name), line)
        for name, its_bits in run.summary.baseline_bits_per_byte.items():
            # Older runs have differences of compressed sizes that were too small to say anything.
            if its_bits > 0:
                line = Reference(_named(name, of_text), None if ratio is None else its_bits / ratio, its_bits)
                _keep_fuller(found, (text, name), line)
    lines = list(found.values()) if with_losses else [dataclasses.replace(line, loss=None) for line in found.values()]
    return sorted(lines, key=lambda line: -(line.bits_per_byte or math.inf))


def _labels(group: str, fingerprint: str, runs: Mapping[str | None, Run]) -> dict[str | None, str]:
    """A different name for each text or tokenizer, each given with a run that has it.

    It is the option that was chosen; where several have the same, with the settings of the group that differ between
    them; and where these are the same too (the file at a path has changed), with the start of a fingerprint.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs.values():
        alike.setdefault(_chosen(run, group), []).append(run)
    labels = {}
    for key, run in runs.items():
        option = _chosen(run, group)
        others = [other.settings for other in alike[option]]
        names = [name for name in run.settings if name.startswith(f"{group}.")]
        apart = [name for name in names if any(other.get(name) != run.settings[name] for other in others)]
        words = [f"{name.removeprefix(f'{group}.')}={run.settings[name]}" for name in apart]
        labels[key] = " ".join([option, *words])
    n_uses = Counter(labels.values())
    return {
        key: label if n_uses[label] == 1 else f"{label} {str(getattr(runs[key].summary, fingerprint))[:8]}"
        for key, label in labels.items()
    }


def _named(name: str, of: Sequence[str]) -> str:
    return name.replace("_", " ") + (f" ({', '.join(of)})" if of else "")


def _keep_fuller(found: dict[tuple[Any, ...], Reference], key: tuple[Any, ...], line: Reference) -> None:
    known = found.get(key)
    if known is None or known.loss is None or known.bits_per_byte is None:
        found[key] = line


def _chosen(run: Run, group: str) -> str:
    return str(values_of(group, [run])[1][0]) if run.settings else "?"


def near(name: str, known: Iterable[str]) -> str:
    """As `errors.nearest`, and for `loss` all columns that have it in their name."""
    return nearest(name, [one for one in known if name in one] or known)


def _seed(run: Run) -> Any:
    return run.settings.get("seed", run.summary.seed)
