import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from nanolm.analysis.collection import find
from nanolm.analysis.comparison import Comparison, Row, compare
from nanolm.analysis.metrics import METRICS
from nanolm.analysis.statistics import confidence_interval
from nanolm.errors import SettingsError
from tests.runs.made import make_run

GPT = {"model": "gpt", "dataset": "tiny_shakespeare", "tokenizer": "char", "size": "small"}


def seeds(folder: Path, name: str, losses: list[float], **about: Any) -> None:
    """Write a run for each loss, with seeds 1, 2, ..."""
    settings = about.pop("settings", {})
    for seed, loss in enumerate(losses, start=1):
        make_run(folder / f"{name}_{seed}", losses=[loss + 1, loss], settings={**settings, "seed": seed}, **about)


def compared(folder: Path, **options: Any) -> Comparison:
    return compare(find([folder]), **options)


def row_of(found: Comparison, **settings: Any) -> Row:
    (row,) = (row for row in found.rows if settings.items() <= row.settings.items())
    return row


def test_runs_that_differ_by_seed_are_one_row(tmp_path: Path) -> None:
    seeds(tmp_path, "low", [2.0, 2.1, 2.2], settings={"optimizer.lr": 0.01})
    seeds(tmp_path, "high", [3.0, 3.1, 3.3], settings={"optimizer.lr": 0.1})
    found = compared(tmp_path)
    assert [row.settings for row in found.rows] == [{"optimizer.lr": 0.01}, {"optimizer.lr": 0.1}]
    low, high = found.rows
    best = low.estimates["val_loss"]
    assert (low.n_seeds, best.mean, best.values) == (3, pytest.approx(2.1), (2.0, 2.1, 2.2))
    assert best.interval == confidence_interval([2.0, 2.1, 2.2])
    assert (low.verdict, high.verdict, low.is_best) == ("best", "different", True)
    assert high.p_value == pytest.approx(stats.ttest_rel([2.0, 2.1, 2.2], [3.0, 3.1, 3.3]).pvalue)
    assert low.estimates["perplexity"].mean == pytest.approx(statistics.fmean(map(math.exp, [2.0, 2.1, 2.2])))
    assert low.estimates["flops"].mean == 64 * 20 * 1000
    assert low.estimates["tokens"].mean == 64 * 20


def test_difference_within_the_spread_is_not_significant(tmp_path: Path) -> None:
    seeds(tmp_path, "a", [2.0, 2.1, 2.2], settings={"optimizer.lr": 0.01})
    seeds(tmp_path, "b", [2.05, 2.1, 2.25], settings={"optimizer.lr": 0.1})
    assert [row.verdict for row in compared(tmp_path).rows] == ["best", "not distinguishable"]


def test_one_seed_has_no_interval_and_no_p_value(tmp_path: Path) -> None:
    seeds(tmp_path, "a", [2.0, 2.1], settings={"optimizer.lr": 0.01})
    seeds(tmp_path, "b", [3.0], settings={"optimizer.lr": 0.1})
    worse = compared(tmp_path).rows[1]
    assert (worse.verdict, worse.p_value, worse.estimates["best_val_loss"].interval) == ("one seed", None, None)


def test_repeated_seed_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a", losses=[2.0])
    make_run(tmp_path / "again", losses=[2.2], settings={"trainer.save_every": 10})
    found = compared(tmp_path)
    (row,) = found.rows
    assert (row.n_seeds, row.estimates["best_val_loss"].values) == (1, (pytest.approx(2.1),))
    assert "1 run repeats the settings and seed" in found.notes[0]


def test_mean_is_over_completed_runs(tmp_path: Path) -> None:
    seeds(tmp_path, "a", [2.0, 2.2])
    make_run(tmp_path / "b", losses=[9.0], settings={"seed": 3}, status="diverged")
    (row,) = compared(tmp_path).rows
    assert (row.status, row.n_seeds) == ("2 completed, 1 diverged", 2)
    assert row.estimates["best_val_loss"].mean == pytest.approx(2.1)


def test_metrics_of_a_cut_off_run_come_from_its_rows(tmp_path: Path) -> None:
    never_said = dict.fromkeys(["step", "tokens", "seconds", "final_val_loss", "bits_per_byte"])
    path = make_run(tmp_path / "a", losses=[3.0, 2.0, 2.5], status="running", **never_said)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "split": "tr')
    (row,) = compared(tmp_path).rows
    assert row.status == "unfinished"
    means = {name: estimate.mean for name, estimate in row.estimates.items()}
    assert (means["best_val_loss"], means["final_val_loss"], means["val_loss"]) == (2.0, 2.5, 2.5)
    assert (means["best_bits_per_byte"], means["bits_per_byte"]) == (3.0, 3.75)
    assert (means["tokens"], means["seconds"]) == (1920, 3.0)


def test_target_is_reached_at_the_first_evaluation_below(tmp_path: Path) -> None:
    make_run(tmp_path / "a", losses=[3.0, 2.4, 2.0], settings={"optimizer.lr": 0.01})
    make_run(tmp_path / "b", losses=[3.0, 2.9, 2.6], settings={"optimizer.lr": 0.1})
    first, second = compared(tmp_path, target=2.5).rows
    assert (first.estimates["tokens_to_target"].mean, first.estimates["seconds_to_target"].mean) == (1280, 2.0)
    assert (second.n_reached, second.estimates["tokens_to_target"].mean) == (0, None)
    in_bits = compared(tmp_path, target=3.05, metrics=["bits_per_byte"])
    assert in_bits.rows[0].estimates["tokens_to_target"].mean == 1920


def test_damaged_rows_are_noted_and_other_runs_compared(tmp_path: Path) -> None:
    make_run(tmp_path / "a", losses=[3.0, 2.0])
    path = make_run(tmp_path / "b", losses=[3.0, 2.0], settings={"optimizer.lr": 0.1})
    (path / "metrics.jsonl").write_text('{"split": "val", "lo\n{"split": "val"}\n')
    found = compared(tmp_path, target=2.5)
    assert row_of(found, **{"optimizer.lr": 0.002}).n_reached == 1
    assert any(note.startswith("b: line 1 of metrics.jsonl is damaged") for note in found.notes)


def test_grouping_shows_the_best_row_of_each_group(tmp_path: Path) -> None:
    for lr, losses in ((0.01, [2.0, 2.1]), (0.1, [3.0, 3.1])):
        seeds(tmp_path, f"gpt_{lr}", losses, settings={"optimizer.lr": lr, "model.name": "transformer"}, choices=GPT)
        seeds(tmp_path, f"bigram_{lr}", [loss + 1 for loss in reversed(losses)], settings={"optimizer.lr": 1 - lr})
    found = compared(tmp_path, by=["model"])
    assert [(row.settings, row.best_of, row.n_seeds) for row in found.rows] == [
        ({"model": "gpt", "optimizer.lr": 0.01}, 2, 2),
        ({"model": "bigram", "optimizer.lr": 0.99}, 2, 2),
    ]
    assert found.by == ("model",)
    assert [row.settings["optimizer.lr"] for row in compared(tmp_path, by=["lr"]).rows] == [0.01, 0.99, 0.1, 0.9]


def test_grouping_by_seed_separates_seeds(tmp_path: Path) -> None:
    for lr, losses in ((0.01, [2.0, 3.0]), (0.1, [2.5, 2.4])):
        seeds(tmp_path, f"lr_{lr}", losses, settings={"optimizer.lr": lr})
    found = compared(tmp_path, by=["seed"])
    assert [(row.settings, row.n_seeds, row.best_of) for row in found.rows] == [
        ({"seed": 1, "optimizer.lr": 0.01}, 1, 2),
        ({"seed": 2, "optimizer.lr": 0.1}, 1, 2),
    ]


def test_different_tokenizers_leave_only_bits_per_byte(tmp_path: Path) -> None:
    make_run(tmp_path / "char", losses=[2.0], bits_per_nat=1.5)
    bpe = {"model": "bigram", "tokenizer": "bpe", "dataset": "tiny_shakespeare"}
    changes = {"settings": {"tokenizer.name": "bpe"}, "choices": bpe, "tokenizer": "u" * 64}
    make_run(tmp_path / "bpe", losses=[4.0], bits_per_nat=0.5, **changes)
    found = compared(tmp_path)
    assert found.metrics[0] == "bits_per_byte"
    assert not any(METRICS[name].per_token for name in found.metrics)
    assert [row.settings["tokenizer"] for row in found.rows] == ["bpe", "char"]
    assert "2 different tokenizers: losses per token are not comparable" in found.notes[0]
    names = [line.name for line in found.baselines]
    assert sorted(names) == [
        "counted bigram (bpe)",
        "counted bigram (char)",
        "counted unigram (bpe)",
        "counted unigram (char)",
        "gzip",
        "xz",
    ]
    assert all(line.loss is None for line in found.baselines)
    with pytest.raises(SettingsError, match=r"--target 2\.5 is a loss per token, and the runs have 2 different"):
        compared(tmp_path, target=2.5)
    assert compared(tmp_path, target=2.5, metrics=["bits_per_byte"]).rows[0].n_reached == 1


@pytest.mark.parametrize("change", [{"corpus": "d" * 64}, {"settings": {"dataset.val_fraction": 0.2}}])
def test_different_texts_are_incomparable(tmp_path: Path, change: dict[str, Any]) -> None:
    seeds(tmp_path, "a", [2.0, 2.1])
    other = {"model": "bigram", "dataset": "python_docs", "tokenizer": "char", "size": "small"}
    seeds(tmp_path, "b", [2.0, 2.1], choices=other, **change)
    found = compared(tmp_path)
    assert "scored on 2 different validation texts: losses are not comparable" in found.notes[0]
    assert found.metrics[0] == "bits_per_byte"
    assert [row.verdict for row in found.rows] == ["incomparable"] * 2
    assert {line.name for line in found.baselines} == {
        f"{name} ({text})"
        for name in ("counted unigram", "counted bigram", "gzip", "xz")
        for text in ("tiny_shakespeare", "python_docs")
    }


def test_noncausal_mask_does_not_win(tmp_path: Path) -> None:
    seeds(tmp_path, "honest", [2.0, 2.1])
    seeds(tmp_path, "future", [1.0, 1.1], settings={"mask.name": "none"}, is_noncausal=True)
    found = compared(tmp_path)
    assert [row.verdict for row in found.rows] == ["incomparable", "best"]
    assert any("attends to future tokens" in note for note in found.notes)


def test_lossy_tokenizer_does_not_win(tmp_path: Path) -> None:
    make_run(tmp_path / "char", losses=[2.0])
    make_run(tmp_path / "word", losses=[1.0], settings={"tokenizer.name": "word"}, lossless=False, tokenizer="w" * 64)
    found = compared(tmp_path)
    assert {row.is_lossless: row.verdict for row in found.rows} == {False: "incomparable", True: "best"}
    assert any("<unk> hides text" in note for note in found.notes)


def test_rows_sort_by_any_column(tmp_path: Path) -> None:
    make_run(tmp_path / "a", losses=[2.0], settings={"optimizer.lr": 0.1}, tokens_per_second=5.0)
    make_run(tmp_path / "b", losses=[3.0], settings={"optimizer.lr": 0.01}, tokens_per_second=9.0)
    make_run(tmp_path / "c", losses=[], settings={"optimizer.lr": 1.0}, status="failed", tokens_per_second=None)

    def order(**options: Any) -> list[float]:
        return [row.settings["optimizer.lr"] for row in compared(tmp_path, **options).rows]

    assert order() == [0.1, 0.01, 1.0]
    assert order(sort="lr") == order(sort="optimizer.lr") == [0.01, 0.1, 1.0]
    assert order(sort="tokens_per_second") == order(metrics=["tokens_per_second"]) == [0.01, 0.1, 1.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": ["perplexty"]}, "did you mean perplexity"),
        ({"metrics": ["loss"]}, "one of: best_ema_val_loss, best_val_loss, final_val_loss, test_loss, val_loss"),
        ({"sort": "best_val_los"}, "did you mean best_val_loss"),
        ({"by": ["optimizer.lrr"]}, "did you mean optimizer.lr"),
        ({"by": ["name"]}, "is ambiguous: dataset.name, tokenizer.name"),
        ({"metrics": ["tokens_to_target"]}, "tokens_to_target needs a target"),
    ],
)
def test_unknown_names_get_a_hint(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(SettingsError, match=words):
        compared(tmp_path, **options)


def test_best_of_a_group_is_comparable(tmp_path: Path) -> None:
    for model in ("gpt", "gpt2"):
        for mask, loss in (("causal", 2.0), ("none", 0.5)):
            make_run(
                tmp_path / f"{model}_{mask}",
                losses=[loss],
                settings={"model.name": model, "mask.name": mask},
                choices={**GPT, "model": model, "mask": mask},
                is_noncausal=mask == "none",
            )
    rows = compared(tmp_path, by=["model"]).rows
    assert [row.settings["mask"] for row in rows] == ["causal", "causal"]
    assert not any(row.is_noncausal for row in rows)


def test_best_over_several_texts_is_an_error(tmp_path: Path) -> None:
    for text in "ab":
        make_run(tmp_path / text, corpus=text * 64)
    with pytest.raises(SettingsError, match="some group has several validation texts"):
        compared(tmp_path, by=["model"])


def test_only_losses_are_tested_for_significance(tmp_path: Path) -> None:
    seeds(tmp_path, "low", [2.0, 2.1], settings={"optimizer.lr": 0.01})
    seeds(tmp_path, "high", [3.0, 3.1], settings={"optimizer.lr": 0.1})
    found = compared(tmp_path, metrics=["tokens_to_target"], target=2.5)
    assert [row.p_value for row in found.rows] == [None, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": math.nan}, "--target nan is not a loss"),
        ({"target": -1.0}, "--target -1.0 is not a loss"),
        ({"sort": "tokens_to_target"}, "tokens_to_target needs a target\n  where: --sort"),
    ],
)
def test_invalid_options_are_errors(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(SettingsError, match=message):
        compared(tmp_path, **options)


def test_sorting_by_an_incomparable_loss_is_an_error(tmp_path: Path) -> None:
    for kind in "ab":
        make_run(tmp_path / kind, tokenizer=kind * 64)
    with pytest.raises(SettingsError, match="best_val_loss is a loss per token, and the runs have 2 different"):
        compared(tmp_path, sort="best_val_loss")


def test_cut_off_repeats_are_not_reported_as_averaged(tmp_path: Path) -> None:
    make_run(tmp_path / "whole", losses=[2.0])
    make_run(tmp_path / "half", losses=[1.0], status="interrupted")
    found = compared(tmp_path)
    assert not [note for note in found.notes if "averaged" in note]
    assert found.rows[0].estimates["best_val_loss"].values == (2.0,)


@pytest.mark.parametrize(
    "change",
    [
        {"best_val_loss": "oops"},
        {"best_val_loss": math.nan},
        {"baseline_losses": {"counted_unigram": None}},
        {"choices": "x"},
        {"baseline_bits_per_byte": [1]},
    ],
)
def test_mistyped_summary_values_are_ignored(change: dict[str, Any], tmp_path: Path) -> None:
    make_run(tmp_path / "odd", **change)
    make_run(tmp_path / "sound", losses=[1.5], settings={"optimizer.lr": 0.5})
    assert row_of(compared(tmp_path), **{"optimizer.lr": 0.5}).verdict == "best"


@pytest.mark.parametrize("row", ["3", '{"step": 1, "split": "val", "loss": null}', '{"step": 1, "split": "val"}'])
def test_damaged_rows_do_not_break_the_comparison(row: str, tmp_path: Path) -> None:
    odd = make_run(tmp_path / "odd", status="running")
    (odd / "metrics.jsonl").write_text(row + "\n")
    make_run(tmp_path / "sound", settings={"optimizer.lr": 0.5})
    assert row_of(compared(tmp_path, target=2.5), **{"optimizer.lr": 0.5}).estimates["best_val_loss"].mean == 2.0


def test_run_without_settings_does_not_hide_choices(tmp_path: Path) -> None:
    for model, activation in (("gpt", "relu"), ("gpt2", "gelu")):
        settings = {"model.activation": activation, "model.name": "transformer"}
        make_run(tmp_path / model, settings=settings, choices={**GPT, "model": model})
    make_run(tmp_path / "damaged", config="{{{", choices={**GPT, "model": "bare"})
    assert {tuple(row.settings) for row in compared(tmp_path).rows} == {("model",)}


def test_rows_with_the_same_batches_are_paired(tmp_path: Path) -> None:
    seeds(tmp_path, "a", [2.0, 2.5, 3.0], settings={"optimizer.lr": 0.01})
    seeds(tmp_path, "b", [2.1, 2.6, 3.11], settings={"optimizer.lr": 0.1})
    worse = compared(tmp_path).rows[1]
    assert worse.difference is not None
    assert (worse.difference.method, worse.verdict) == ("paired", "different")
    assert worse.p_value == pytest.approx(stats.ttest_rel([2.0, 2.5, 3.0], [2.1, 2.6, 3.11]).pvalue)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"settings": {"trainer.batch_size": 8}}, "trainer.batch_size"),
        ({"settings": {"size.context_length": 8}}, "size.context_length"),
        ({"settings": {"trainer.sampling": "epochs"}}, "trainer.sampling"),
        ({"tokenizer": "u" * 64}, "tokenizer"),
    ],
)
def test_rows_with_other_batches_are_not_paired(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    seeds(tmp_path, "a", [2.0, 2.5, 3.0])
    seeds(tmp_path, "b", [2.1, 2.6, 3.11], **change)
    found = compared(tmp_path)
    difference = found.rows[1].difference
    assert difference is not None
    assert difference.method == "welch"
    assert any("not paired by seed" in note and f"their batches differ ({reason})" in note for note in found.notes)


def test_a_schedule_of_batches_depends_on_the_number_of_steps(tmp_path: Path) -> None:
    for name, steps in (("a", 100), ("b", 200)):
        settings = {"trainer.batch_size_schedule": [[0.5, 2]], "trainer.max_steps": steps}
        seeds(tmp_path, name, [2.0, 2.5, 3.0 + steps / 1000], settings=settings)
    found = compared(tmp_path)
    assert any("their batches differ (trainer.max_steps)" in note for note in found.notes)


def test_a_seed_without_partner_is_left_out_and_named(tmp_path: Path) -> None:
    seeds(tmp_path, "a", [2.0, 2.5, 3.0, 2.2], settings={"optimizer.lr": 0.01})
    seeds(tmp_path, "b", [2.6, 2.8, 3.11], settings={"optimizer.lr": 0.1})
    found = compared(tmp_path)
    difference = found.rows[1].difference
    assert difference is not None
    assert (difference.n_seeds, difference.n_unpaired) == (3, 1)
    assert any(note.startswith("lr=0.1: some seeds have no partner") for note in found.notes)


def test_seeds_needed_are_named(tmp_path: Path) -> None:
    seeds(tmp_path, "a", [2.0, 2.1, 2.2], settings={"optimizer.lr": 0.01})
    seeds(tmp_path, "b", [2.05, 2.1, 2.25], settings={"optimizer.lr": 0.1})
    found = compared(tmp_path)
    close = found.rows[1]
    assert close.seeds_needed == 9
    assert "lr=0.1: not distinguishable from the best with 3 seeds; about 9 would be needed" in found.notes


def test_equal_losses_are_named(tmp_path: Path) -> None:
    for lr in (0.01, 0.1, 0.2):
        seeds(tmp_path, f"lr{lr}", [2.0, 2.1], settings={"optimizer.lr": lr})
    found = compared(tmp_path)
    assert [row.verdict for row in found.rows] == ["best", "not distinguishable", "not distinguishable"]
    assert any("all rows have the same losses" in note for note in found.notes)


def test_rows_are_judged_at_the_last_shared_step(tmp_path: Path) -> None:
    make_run(tmp_path / "long", losses=[3.0, 2.4, 2.5, 2.0], settings={"optimizer.lr": 0.01})
    make_run(tmp_path / "short", losses=[3.1, 2.2, 2.3], settings={"optimizer.lr": 0.1})
    found = compared(tmp_path)
    assert found.point == "at step 30"
    assert [row.estimates["val_loss"].mean for row in found.rows] == [2.3, 2.5]
    assert [row.estimates["best_val_loss"].mean for row in found.rows] == [2.2, 2.0]
    assert any("different budgets, from 1.92k to 2.56k tokens" in note for note in found.notes)


def test_the_final_loss_is_judged_not_the_best(tmp_path: Path) -> None:
    make_run(tmp_path / "a", losses=[1.0, 2.5], settings={"optimizer.lr": 0.01, "trainer.eval_every": 10})
    make_run(tmp_path / "b", losses=[3.0, 2.4], settings={"optimizer.lr": 0.1, "trainer.eval_every": 10})
    found = compared(tmp_path)
    assert (found.point, found.heading("best_val_loss")) == ("final", "val loss\nbest of 2\nevaluations")
    assert [row.settings["optimizer.lr"] for row in found.rows] == [0.1, 0.01]


def test_without_a_shared_step_losses_are_interpolated(tmp_path: Path) -> None:
    make_run(tmp_path / "a", losses=[3.0, 2.0], settings={"optimizer.lr": 0.01})
    path = make_run(tmp_path / "b", losses=[2.5], settings={"optimizer.lr": 0.1}, step=15)
    rows = (path / "metrics.jsonl").read_text().replace('"step": 10, "split": "val"', '"step": 15, "split": "val"')
    (path / "metrics.jsonl").write_text(rows)
    found = compared(tmp_path)
    assert found.point == "at step 15"
    assert row_of(found, **{"optimizer.lr": 0.01}).estimates["val_loss"].mean == 2.5
    assert row_of(found, **{"optimizer.lr": 0.01}).is_interpolated
    assert any("interpolated between evaluations" in note for note in found.notes)


def test_unfinished_rows_are_listed_without_a_judged_loss(tmp_path: Path) -> None:
    for lr in (0.01, 0.1):
        make_run(tmp_path / f"lr{lr}", losses=[3.0, 2.0 + lr], settings={"optimizer.lr": lr})
    make_run(tmp_path / "cut", losses=[1.0], settings={"optimizer.lr": 1.0}, status="interrupted")
    found = compared(tmp_path)
    assert [row.verdict for row in found.rows] == ["best", "one seed", ""]
    assert found.point == "final"
    assert any("not judged, as they are not completed: cut (interrupted)" in note for note in found.notes)


def test_an_interrupted_run_is_compared_with_a_completed_one_at_their_shared_step(tmp_path: Path) -> None:
    make_run(tmp_path / "whole", losses=[3.0, 2.5, 2.0], settings={"optimizer.lr": 0.01})
    make_run(tmp_path / "cut", losses=[2.9, 2.4], settings={"optimizer.lr": 0.1}, status="interrupted")
    found = compared(tmp_path)
    assert found.point == "at step 20"
    assert [row.estimates["val_loss"].mean for row in found.rows] == [2.4, 2.5]


def test_rows_are_judged_by_the_test_split_where_all_have_it(tmp_path: Path) -> None:
    make_run(tmp_path / "a", losses=[2.0], settings={"optimizer.lr": 0.01}, test_loss=2.3)
    make_run(tmp_path / "b", losses=[2.1], settings={"optimizer.lr": 0.1}, test_loss=2.2)
    found = compared(tmp_path)
    assert found.metrics[0] == "test_loss"
    assert [row.settings["optimizer.lr"] for row in found.rows] == [0.1, 0.01]
    assert any("judged by the loss of each run's selected checkpoint on the test split" in note for note in found.notes)
    make_run(tmp_path / "c", losses=[2.2], settings={"optimizer.lr": 1.0})
    found = compared(tmp_path)
    assert found.metrics[0] == "val_loss"
    assert "2 of 3 rows have a loss on a test split: judged by the validation loss" in found.notes
