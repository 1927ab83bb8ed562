"""Failures of the wandb server do not change training."""

import socket
from datetime import datetime
from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from tests.helpers import SMALL, Nanolm, untimed_rows
from tests.wandb_server import run_server


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behavior", "steps"),
    # The last run is long enough that rows are sent before it ends.
    [("dead", 20), ("broken", 20), ("silent", 20), ("dies midway", 5000)],
)
def test_an_outage_does_not_change_the_rows(behavior: str, steps: int, nanolm: Nanolm, small_text: Path) -> None:
    line = ("train", "dataset=text", f"dataset.path={small_text}", *SMALL, f"trainer.max_steps={steps}")
    line = (*line, f"trainer.eval_every={steps}", f"trainer.save_every={steps}")
    assert nanolm(*line, "hydra.run.dir=without", timeout=300).returncode == 0
    with run_server(behavior) as server:
        del nanolm.environment["WANDB_MODE"]
        nanolm.environment |= {"WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": server.url}
        done = nanolm(*line, "logger=wandb", "hydra.run.dir=with", timeout=300)
    assert done.returncode == 0, done.stderr
    assert server.was_called == (behavior != "dead")
    assert untimed_rows(RunDirectory(nanolm.folder / "with")) == untimed_rows(RunDirectory(nanolm.folder / "without"))
    summary = RunDirectory(nanolm.folder / "with").read_summary()
    assert (summary.status, summary.step) == ("completed", steps)
    log = (nanolm.folder / "with" / "train.log").read_text()
    if behavior == "dies midway":
        assert summary.wandb_mode == "online"
        assert "wandb does not answer; what it has not sent is in metrics.jsonl" in log
        return
    assert summary.wandb_mode == "offline"
    start, warning = (
        datetime.fromisoformat(next(line for line in log.splitlines() if text in line)[:19])
        for text in ("run directory", "wandb does not answer")
    )
    assert (warning - start).total_seconds() <= 15


def test_a_dead_server_refuses_connections() -> None:
    with run_server("dead") as server, pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.server_address[:2], timeout=5)
