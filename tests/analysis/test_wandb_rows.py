import statistics
from pathlib import Path

import pytest

from nanolm.analysis.collection import find
from nanolm.analysis.wandb_rows import seed_summaries, send
from nanolm.config.logger import WandbConfig
from tests import wandb_files
from tests.runs.made import make_run

LOSSES = {(0.1, 1): 2.0, (0.1, 2): 2.1, (0.1, 3): 2.3, (0.2, 1): 2.5}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "rates"
    for (lr, seed), loss in LOSSES.items():
        make_run(
            folder / f"lr={lr},seed={seed}", losses=[loss], settings={"optimizer.lr": lr, "seed": seed}, group="rates"
        )
    return folder


def test_rows_of_seeds_have_mean_spread_and_number(sweep: Path) -> None:
    first, second = seed_summaries(find([sweep]))
    assert (first.name, first.group) == ("lr=0.1 (3 seeds)", "rates")
    losses = [loss for (lr, _), loss in LOSSES.items() if lr == 0.1]
    assert first.values["val_loss/mean"] == pytest.approx(statistics.fmean(losses))
    assert first.values["val_loss/sd"] == pytest.approx(statistics.stdev(losses))
    assert (first.values["val_loss/n"], first.values["judged_by"], first.values["verdict"]) == (3, "val_loss", "best")
    assert (first.settings["seeds"], first.settings["optimizer.lr"]) == ([1, 2, 3], 0.1)
    assert "seed" not in first.settings
    assert (second.name, second.values["val_loss/n"], second.values["val_loss/sd"]) == ("lr=0.2 (1 seed)", 1, None)
    assert first.run_id != second.run_id


def test_more_seeds_replace_the_summary_of_a_row(sweep: Path) -> None:
    before = [summary.run_id for summary in seed_summaries(find([sweep]))]
    make_run(sweep / "lr=0.1,seed=4", losses=[2.2], settings={"optimizer.lr": 0.1, "seed": 4}, group="rates")
    after = seed_summaries(find([sweep]))
    assert [summary.run_id for summary in after] == before
    assert after[0].values["val_loss/n"] == 4


def test_sweeps_of_one_seed_have_no_summary(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        make_run(tmp_path / "rates" / str(lr), settings={"optimizer.lr": lr}, group="rates")
    for seed in (1, 2):
        make_run(tmp_path / "alone" / str(seed), settings={"seed": seed})
    assert seed_summaries(find([tmp_path])) == []


@pytest.mark.slow
@pytest.mark.usefixtures("no_wandb_account")
def test_summary_is_written_offline(sweep: Path) -> None:
    summary = seed_summaries(find([sweep]))[0]
    folder = sweep / send(summary, WandbConfig(project="mine"), "offline")
    assert folder.parent == sweep / "lr=0.1,seed=1" / "wandb"
    header, values = wandb_files.header(folder), wandb_files.summary(folder)
    assert (header.project, header.run_group, header.job_type) == ("mine", "rates", "seeds")
    assert (header.display_name, header.run_id) == ("lr=0.1 (3 seeds)", summary.run_id)
    assert wandb_files.config(folder)["seeds"] == [1, 2, 3]
    assert values["val_loss/mean"] == summary.values["val_loss/mean"]
    assert (values["val_loss/n"], values["verdict"]) == (3, "best")
    assert wandb_files.exit_codes(folder) == [0]
