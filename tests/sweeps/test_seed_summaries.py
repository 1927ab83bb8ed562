import statistics
from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from tests import wandb_files
from tests.helpers import SMALL, Nanolm


@pytest.mark.slow
def test_seeds_of_a_sweep_are_summarized_in_wandb(nanolm: Nanolm, small_text: Path) -> None:
    line = (*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=4", "trainer.eval_every=2")
    line = (*line, "logger=wandb", "hydra.sweep.dir=outputs/seeds", "seed=1,2")
    done = nanolm("train", "-m", *line)
    assert done.returncode == 0, done.stderr
    assert "wandb: seeds (2 seeds)" in done.stdout + done.stderr
    sweep = nanolm.folder / "outputs" / "seeds"
    losses = [RunDirectory(path.parent).read_summary().final_val_loss for path in sweep.glob("*/config.yaml")]
    own = {RunDirectory(path.parent).read_summary().wandb_id for path in sweep.glob("*/config.yaml")}
    assert None not in losses

    def summaries() -> list[Path]:
        return [path for path in sweep.glob("*/wandb/offline-run-*") if path.name.rpartition("-")[2] not in own]

    (folder,) = summaries()
    header, values = wandb_files.header(folder), wandb_files.summary(folder)
    assert (header.run_group, header.job_type) == ("seeds", "seeds")
    assert values["val_loss/mean"] == pytest.approx(statistics.fmean(map(float, losses)))
    assert values["val_loss/sd"] == pytest.approx(statistics.stdev(map(float, losses)))
    assert values["val_loss/n"] == 2
    # Without a new job there is nothing to log; a push sends it again.
    again = nanolm("train", "-m", *line)
    assert "2 of them done" in again.stdout + again.stderr
    assert len(summaries()) == 1
    pushed = nanolm("wandb", "push", "outputs/seeds", "--offline")
    assert pushed.returncode == 0, pushed.stderr
    assert "seeds (2 seeds)" in pushed.stdout
    own |= {RunDirectory(path.parent).read_summary().wandb_id for path in sweep.glob("*/config.yaml")}
    assert {path.name.rpartition("-")[2] for path in summaries()} == {header.run_id}
