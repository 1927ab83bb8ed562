"""The table that a sweep prints at its end."""

from pathlib import Path

import pytest

from nanolm.runs.summary import Summary
from nanolm.sweeps.combinations import combinations
from nanolm.sweeps.planning import Job, comparison_metric, plan
from nanolm.sweeps.states import Report, State
from nanolm.sweeps.summary import MAX_ROWS, print_summary, ranked
from tests.helpers import SMALL


def jobs_of(folder: Path, *overrides: str) -> list[Job]:
    return plan(combinations([*SMALL, *overrides]), folder)


def completed(loss: float, bits: float = 1.0) -> Report:
    return Report(State.completed, Summary(step=9, best_val_loss=loss, bits_per_byte=bits))


def test_summary_ranks_the_best_first_and_failures_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = jobs_of(tmp_path, "seed=1,2,3")
    reports = [Report(State.failed, Summary(), "no memory"), completed(2.5), completed(2.25)]
    assert [report.value for _, report, _ in ranked(jobs, reports)] == [2.25, 2.5, None]
    print_summary(jobs, reports, tmp_path, n_done_before=1)
    out = capsys.readouterr().out
    assert out.index("2.2500") < out.index("2.5000") < out.index("failed")
    assert "3 jobs: 2 completed, 1 failed; 1 were done before" in out
    assert "the same command again runs what is missing" in out
    assert f"nanolm compare {tmp_path}" in out


def test_summary_lists_jobs_that_were_not_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = jobs_of(tmp_path, "seed=1,2,3")
    reports = [Report(State.new), completed(2.5), Report(State.new)]
    print_summary(jobs, reports, tmp_path, n_done_before=0, max_hours=1.5)
    out = capsys.readouterr().out
    assert "sweep.max_hours=1.5 is over: 2 jobs were not begun:\n  seed=1\n  seed=3\n" in out
    assert "the same command again runs what is missing" in out


def test_summary_notes_a_job_whose_settings_were_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = jobs_of(tmp_path, "seed=1,2")
    for job, lr in zip(jobs, (0.1, 0.2), strict=True):
        job.run.config.write_text(f"optimizer: {{lr: {lr}}}\n")
        manifest = job.run.checkpoints / "step-00000009" / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text('{"settings": {"optimizer.lr": 0.1}}')
    print_summary(jobs, [completed(2.5), completed(2.25)], tmp_path, n_done_before=2)
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("config.yaml has changed since the run was trained") == 1
    assert f"{jobs[1].run.path.name}: config.yaml has changed" in out
    assert "optimizer.lr: 0.1 -> 0.2" in out


def test_summary_of_many_jobs_shows_best_and_failed_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = jobs_of(tmp_path, "seed=range(0,60)")
    reports = [completed(3 - n / 100) for n in range(59)] + [Report(State.failed, Summary(), "no memory")]
    print_summary(jobs, reports, tmp_path, n_done_before=0)
    out = capsys.readouterr().out
    assert out.count(" completed ") == MAX_ROWS // 2
    assert out.count("failed") == 2
    assert "and 39 more without errors" in out


def test_summary_ranks_different_tokenizers_by_bits_per_byte(tmp_path: Path) -> None:
    assert comparison_metric(jobs_of(tmp_path, "seed=1,2")) == "best_val_loss"
    jobs = jobs_of(tmp_path, "tokenizer=char,byte")
    assert comparison_metric(jobs) == "bits_per_byte"
    order = ranked(jobs, [completed(2.0, bits=3.0), completed(2.5, bits=2.0)])
    assert [job.swept["tokenizer"] for job, _, _ in order] == ["byte", "char"]
