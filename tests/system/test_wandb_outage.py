"""Whatever becomes of the wandb server, a run trains as it would without one."""

import json
import socket
from datetime import datetime
from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from tests.helpers import SMALL, Nanolm
from tests.wandb_server import run_server

TIME_FIELDS = ("seconds", "tokens_per_second")


def rows(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIME_FIELDS} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "steps"),
    # The last is long enough for the first rows to be sent.
    [("dead", 20), ("broken", 20), ("silent", 20), ("dies midway", 5000)],
)
def test_an_outage_changes_no_row(how: str, steps: int, nanolm: Nanolm, small_text: Path) -> None:
    line = ("train", "dataset=text", f"dataset.path={small_text}", *SMALL, f"trainer.max_steps={steps}")
    line = (*line, f"trainer.eval_every={steps}", f"trainer.save_every={steps}")
    assert nanolm(*line, "hydra.run.dir=without", timeout=300).returncode == 0
    with run_server(how) as server:
        del nanolm.environment["WANDB_MODE"]
        nanolm.environment |= {"WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": server.url}
        done = nanolm(*line, "logger=wandb", "hydra.run.dir=with", timeout=300)
    assert done.returncode == 0, done.stderr
    assert server.was_called == (how != "dead")
    assert rows(nanolm.folder / "with") == rows(nanolm.folder / "without")
    summary = RunDirectory(nanolm.folder / "with").read_summary()
    assert (summary.status, summary.step) == ("completed", steps)
    log = (nanolm.folder / "with" / "train.log").read_text()
    if how == "dies midway":
        assert summary.wandb_mode == "online"
        assert "wandb does not answer; what it has not sent is in metrics.jsonl" in log
        return
    assert summary.wandb_mode == "offline"
    began, told = (
        datetime.fromisoformat(next(line for line in log.splitlines() if words in line)[:19])
        for words in ("run directory", "wandb does not answer")
    )
    assert (told - began).total_seconds() <= 15


def test_a_port_that_nobody_listens_on_refuses() -> None:
    with run_server("dead") as server, pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.server_address[:2], timeout=5)
