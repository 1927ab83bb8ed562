import dataclasses
import time
from pathlib import Path

import pytest

from nanolm.config.logger import NoLoggerConfig, WandbConfig, WandbMode
from nanolm.runs.directory import RunDirectory
from nanolm.runs.loggers import About, NoLogger, WandbLogger, open_logger
from nanolm.runs.metrics import MetricsRow
from nanolm.runs.summary import Summary
from tests import wandb_files

ABOUT = About({"optimizer.lr": 0.5})


pytestmark = pytest.mark.usefixtures("no_wandb_account")


def test_offline_record_continues_after_a_resume(tmp_path: Path) -> None:
    said: list[str] = []
    run = RunDirectory(tmp_path / "my run")
    run.path.mkdir()
    first = open_logger(WandbConfig(), run, ABOUT, said.append)
    assert isinstance(first, WandbLogger)
    first.log(MetricsRow(step=10, split="train", loss=2.5))
    first.log(MetricsRow(step=10, split="val", loss=3.5, bits_per_byte=1.0))
    first.close(Summary(status="interrupted", parameters=7))
    time.sleep(1.1)  # wandb names the folder of a session by its second
    again = open_logger(WandbConfig(), run, dataclasses.replace(ABOUT, summary=Summary(**first.about())), said.append)
    assert isinstance(again, WandbLogger)
    assert (
        again.about()
        == first.about()
        == {
            "wandb_id": first.run_id,
            "wandb_mode": "offline",
            "wandb_project": "nanolm",
        }
    )
    again.log(MetricsRow(step=20, split="train", loss=1.5))
    again.close(Summary(status="completed"))
    assert said == []
    folders = sorted(run.wandb.glob(f"offline-run-*-{first.run_id}"))
    rows = [row for folder in folders for row in wandb_files.history(folder)]
    assert [(row["_step"], row.get("train/loss"), row.get("val/loss")) for row in rows] == [
        (10, 2.5, 3.5),
        (20, 1.5, None),
    ]


def test_names_in_a_resumed_run_are_not_trusted(tmp_path: Path) -> None:
    said: list[str] = []
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.samples.symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("secret")
    about = dataclasses.replace(ABOUT, summary=Summary(wandb_id="../../x", step=3))
    logger = open_logger(WandbConfig(entity="stranger"), run, about, said.append)
    assert isinstance(logger, WandbLogger)
    assert "/" not in logger.run_id
    logger.close(Summary(status="completed"))
    assert said[0] == "wandb project stranger/nanolm, as the resumed run says; logger.entity= chooses another"
    assert [text.partition(":")[0] for text in said[1:]] == [
        "a new wandb run is created",
        "the samples are not in wandb",
    ]


def test_unreachable_server_falls_back_to_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    said: list[str] = []
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    logger = open_logger(WandbConfig(init_timeout=1.0), run, ABOUT, said.append)
    assert logger.about()["wandb_mode"] == "offline"
    assert len(said) == 1
    assert "recorded offline" in said[0]
    logger.log(MetricsRow(step=1, split="train", loss=1.0))
    logger.close(Summary(status="completed"))


def test_failing_logger_is_replaced_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    logger = open_logger(WandbConfig(), RunDirectory(tmp_path), ABOUT, said.append)
    assert isinstance(logger, NoLogger)
    assert "training continues without it" in said[0]
    assert "Input should be 'online', 'offline'" in said[0], "the reason is on the third line of the error"
    assert "\n" not in said[0]


def test_broken_record_warns_once(tmp_path: Path) -> None:
    said: list[str] = []
    logger = open_logger(WandbConfig(mode=WandbMode.offline), RunDirectory(tmp_path), ABOUT, said.append)
    assert isinstance(logger, WandbLogger)
    logger._record.finish()
    for step in range(3):
        logger.log(MetricsRow(step=step, split="train", loss=1.0))
    logger.close(Summary(status="completed"))
    assert len(said) == 1
    assert said[0].startswith("wandb is off from now on")


def test_no_logger_accepts_everything(tmp_path: Path) -> None:
    logger = open_logger(NoLoggerConfig(), RunDirectory(tmp_path), ABOUT, print)
    logger.log(MetricsRow(step=1, split="train"))
    logger.close(Summary())
    assert logger.about() == {}


def test_training_rows_are_rate_limited(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    logger = open_logger(WandbConfig(mode=WandbMode.offline), run, ABOUT, print)
    began = time.monotonic()
    for step in range(1, 2001):
        logger.log(MetricsRow(step=step, split="train", loss=1.0))
    seconds = time.monotonic() - began
    logger.log(MetricsRow(step=2000, split="val", loss=2.0))
    logger.close(Summary(status="completed"))
    (folder,) = run.wandb.glob("offline-run-*")
    kept = wandb_files.history(folder)
    assert kept[0]["_step"] == 1
    assert len(kept) <= 3 + seconds / WandbLogger.MIN_INTERVAL < 1000
    assert kept[-1]["val/loss"] == 2.0
