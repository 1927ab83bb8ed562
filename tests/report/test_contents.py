import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nanolm.analysis.collection import Run, find
from nanolm.analysis.comparability import NONCAUSAL
from nanolm.errors import RunError
from nanolm.model import count
from nanolm.report.contents import Contents, gather, labels
from nanolm.report.curves import MAX_POINTS
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import Summary
from nanolm.wording import LOSSY
from tests.helpers import SMALL, make_config
from tests.run_fixtures import LONG_NAME, make_run
from tests.runs.made import make_run as written_run

# As the fixture `pair` is trained, so that all runs are judged at the same step.
SAME_STEPS = ("trainer.max_steps=6", "trainer.eval_every=3")


def contents_of(*paths: Path) -> Contents:
    return gather(find(paths))


def change_summary(run: Path, **values: Any) -> None:
    path = run / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_runs_are_sorted_and_varying_settings_listed(sweep: Path) -> None:
    found = contents_of(sweep)
    assert len(found.runs) == 20
    losses = [run.figures["val_loss"] for run in found.runs]
    assert losses == [RunDirectory(Path(run.path)).read_summary().final_val_loss for run in found.runs]
    assert losses == sorted(losses, key=lambda loss: loss or 0)
    assert found.keys == {"model": "model", "optimizer.lr": "lr", "seed": "seed"}
    (long,) = [run for run in found.runs if run.name == LONG_NAME]
    assert long.settings == {"model": "gpt", "optimizer.lr": 0.1, "seed": 1}
    assert (found.by_bits, found.notes) == (False, [])


def test_entry_has_the_figures_of_its_run(pair: Path) -> None:
    (run,) = find([pair / "gpt"])
    (entry,) = gather([run]).runs
    val = RunDirectory(run.path).read_metrics("val")
    assert entry.figures["best_val_loss"] == min(row.loss for row in val)
    assert entry.figures["tokens"] == 6 * 4 * 16
    assert entry.curves["val"]["step"] == [3, 6]
    assert entry.curves["train"]["step"] == [1, 2, 3, 4, 5, 6]
    assert entry.curves["bits_per_byte"]["y"] == [float(f"{row.bits_per_byte:.6g}") for row in val]
    assert [step for step, _ in entry.samples] == [3, 6]
    assert entry.config == (run.path / "config.yaml").read_text()
    assert entry.provenance["corpus"] == run.summary.corpus
    assert "torch" in entry.provenance["versions"]


def test_flops_match_the_formula(pair: Path) -> None:
    (entry,) = contents_of(pair / "gpt").runs
    config = make_config(*SMALL, "dataset=text", "dataset.path=x", "model=gpt")
    vocab_size = json.loads((pair / "gpt" / "summary.json").read_text())["vocab_size"]
    per_token = count.training_flops_per_token(config, vocab_size)
    assert entry.flops_per_token == per_token
    assert entry.figures["flops"] == per_token * 6 * 4 * 16


def test_baselines_appear_once_in_both_units(sweep: Path) -> None:
    found = contents_of(sweep)
    summary = RunDirectory(sweep / "gpt_0.001_1").read_summary()
    counted = {line.name: line for line in found.baselines if line.name.startswith("counted")}
    assert list(counted) == ["counted unigram", "counted bigram"]
    assert {"gzip", "bz2", "xz"} <= {line.name for line in found.baselines}
    bits_per_nat = summary.bits_per_byte / summary.best_val_loss
    for name, loss in summary.baseline_losses.items():
        line = counted[name.replace("_", " ")]
        assert line.loss == loss
        assert line.bits_per_byte == pytest.approx(loss * bits_per_nat)


def test_different_tokenizers_compare_by_bits_per_byte(pair: Path, text: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "bytes", text, "model=bigram", "tokenizer=byte", *SAME_STEPS)
    found = contents_of(pair, tmp_path / "bytes")
    assert found.by_bits
    assert "2 different tokenizers" in found.notes[0]
    assert {"counted bigram (char)", "counted bigram (byte)"} <= {line.name for line in found.baselines}
    assert (found.judged_metric, found.judged) == ("bits_per_byte", "bits per byte")
    assert all(line.loss is None and line.bits_per_byte is not None for line in found.baselines)
    bits = [run.figures["bits_per_byte"] for run in found.runs]
    assert bits == sorted(bits, key=lambda each: each or 0)


def test_different_texts_are_noted(pair: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("1 and 2 make 3; 4 is left.\n" * 40)
    make_run(tmp_path / "run", other, "model=bigram", *SAME_STEPS)
    found = contents_of(pair, tmp_path / "run")
    assert found.by_bits
    assert "2 different validation texts" in found.notes[0]


def test_labels_of_sweep_jobs_are_varying_settings() -> None:
    def run(name: str, group: str | None) -> Run:
        return Run(Path(name), name, {}, Summary(group=group), "completed")

    varying = {"model": ["gpt", "gpt2", "gpt"], "optimizer.lr": [1e-3, 3e-3, 1e-3], "seed": [1, 1, None]}
    jobs = [run(f"model=gpt,optimizer.lr=0.001,seed={n}-0123456789", "sweep") for n in range(3)]
    expected = ["gpt, lr 0.001, seed 1", "gpt2, lr 0.003, seed 1", "gpt, lr 0.001, seed none"]
    assert labels(jobs, varying) == expected
    assert labels([*jobs[:2], run("mine", None)], varying) == [*expected[:2], "mine"]
    twice = {key: [values[0]] * 3 for key, values in varying.items()}
    assert labels(jobs, twice) == [job.name for job in jobs], "labels must be unique"
    assert labels(jobs[:1], {}) == [jobs[0].name]


def test_a_lossy_tokenizer_is_noted(pair: Path, text: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "words", text, "model=bigram", "tokenizer=word", "trainer.max_steps=2")
    found = contents_of(pair, tmp_path / "words")
    assert found.notes[1] == f"words: {LOSSY}"


def test_a_noncausal_mask_is_noted(text: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "leaky", text, "model=gpt", "mask=none", "trainer.max_steps=2")
    assert contents_of(tmp_path / "leaky").notes == [f"leaky: {NONCAUSAL}"]


def test_an_interrupted_run_has_partial_figures(pair: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(pair / "gpt", tmp_path / "run"))
    summary = RunDirectory(run).read_summary()
    unknown = ("best_val_loss", "best_step", "final_val_loss", "bits_per_byte", "tokens", "seconds")
    change_summary(run, status="running", **dict.fromkeys(unknown))
    metrics = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(metrics[:-9])
    (entry,) = contents_of(run).runs
    assert entry.status == "unfinished"
    assert entry.figures["best_step"] == 3
    assert (entry.figures["best_val_loss"] or 0) > summary.best_val_loss
    assert entry.figures["tokens"] == 6 * 4 * 16
    assert entry.faults == ()


def test_a_damaged_run_is_listed_with_its_fault(pair: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(pair / "gpt", tmp_path / "run"))
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    lines[1] = lines[1][:20]
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines))
    found = contents_of(pair, run)
    (entry,) = [entry for entry in found.runs if entry.path == str(run)]
    assert entry.faults[0].startswith("line 2 of metrics.jsonl is damaged")
    assert entry.curves["train"]["y"] == []
    with pytest.raises(RunError, match="this run cannot be read") as error:
        contents_of(run)
    assert "line 2 of metrics.jsonl" in error.value.hint


def test_curves_of_a_long_run_are_thinned(pair: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(pair / "gpt", tmp_path / "run"))
    rows = ({"step": n, "split": "train", "loss": 4 / n, "lr": 1e-3, "tokens": n, "seconds": n} for n in range(1, 5001))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    long, short = contents_of(run).runs[0], contents_of(pair / "gpt").runs[0]
    assert (long.is_thinned, short.is_thinned) == (True, False)
    assert 1000 < len(long.curves["train"]["y"]) <= MAX_POINTS
    assert (long.curves["train"]["step"][0], long.curves["train"]["step"][-1]) == (1, 5000)


def test_runs_are_ranked_by_the_judged_loss(tmp_path: Path) -> None:
    # The first run has the better best evaluation, the second the better final one; the third did not finish.
    written_run(tmp_path / "early", losses=[1.5, 2.0], settings={"optimizer.lr": 0.1})
    written_run(tmp_path / "late", losses=[1.9, 1.8], settings={"optimizer.lr": 0.2})
    written_run(tmp_path / "bad", losses=[1.0], settings={"optimizer.lr": 0.3}, status="diverged")
    found = contents_of(tmp_path)
    assert [run.name for run in found.runs] == ["late", "early", "bad"]
    assert [found.result(run) for run in found.runs] == [1.8, 2.0, None]
    assert (found.judged, found.is_tested) == ("val loss final", False)
    assert any("bad (diverged)" in note for note in found.notes)


def test_runs_with_test_losses_are_ranked_by_them(tmp_path: Path) -> None:
    written_run(tmp_path / "early", losses=[1.5], settings={"optimizer.lr": 0.1}, test_loss=1.9)
    written_run(tmp_path / "late", losses=[1.8], settings={"optimizer.lr": 0.2}, test_loss=1.7)
    found = contents_of(tmp_path)
    assert [found.result(run) for run in found.runs] == [1.7, 1.9]
    assert (found.judged, found.is_tested) == ("test loss", True)
    assert any("on the test split" in note for note in found.notes)


def test_the_status_of_a_sweep_is_part_of_the_report(tmp_path: Path) -> None:
    sweep, other = tmp_path / "sweep", tmp_path / "other"
    for number, status in enumerate(["completed", "interrupted"]):
        written_run(sweep / f"seed={number}-{number:010x}", losses=[3.0, 2.0], status=status, max_steps=20)
    failed = sweep / "seed=2-00000000aa"
    failed.mkdir()
    (failed / "error.txt").write_text("no memory\n")
    run = written_run(other / "alone", losses=[3.0, 2.0], status="completed", max_steps=20)
    (found,) = contents_of(sweep, run).sweeps
    assert found["folder"] == str(sweep)
    assert found["progress"] == "1 of 3 jobs done, 0 running, 1 failed, 1 left"
    assert found["failed"] == [{"run": failed.name, "error": "no memory"}]
    assert found["best"]["value"] == 2.0
    assert contents_of(run).sweeps == []
