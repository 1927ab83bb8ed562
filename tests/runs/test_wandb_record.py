import functools
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nanolm.config.logger import WandbConfig
from nanolm.errors import RunError
from nanolm.runs import wandb_record
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import MetricsRow
from nanolm.runs.summary import Summary
from tests import wandb_files
from tests.helpers import SMALL, Nanolm

pytestmark = pytest.mark.usefixtures("no_wandb_account")


def test_account_is_an_api_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wandb_record.has_account()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40)
    (tmp_path / "netrc").chmod(0o600)
    assert wandb_record.has_account()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not wandb_record.has_account()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_record.has_account()


def test_baselines_are_logged_with_val_rows_only() -> None:
    summary = Summary(baseline_losses={"counted_bigram": 2.5}, baseline_bits_per_byte={"gzip": 3.0}, seed=1)
    references = wandb_record.baselines(summary)
    assert references == {"baseline/counted_bigram": 2.5, "baseline/gzip_bits_per_byte": 3.0}
    assert wandb_record.baselines(Summary()) == {}
    train = MetricsRow(step=3, split="train", loss=2.0, lr=0.1)
    val = MetricsRow(step=3, split="val", loss=2.1)
    assert wandb_record.values(train, references) == {"train/loss": 2.0, "train/lr": 0.1}
    assert wandb_record.values(val, references) == {"val/loss": 2.1, **references}


def test_open_record_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    runs = [RunDirectory(tmp_path / name) for name in ("left_open", "next")]
    settings = WandbConfig(tags=["small"])
    records = [
        wandb_record.begin(settings, run, {}, mode="offline", run_id=None, is_live=True, group="sweep") for run in runs
    ]
    assert len({record.id for record in records} | {"theirs"}) == 3
    alone = wandb_record.begin(
        settings, RunDirectory(tmp_path / "alone"), {}, mode="offline", run_id=None, is_live=True, group=None
    )
    assert alone.id == "theirs", "a run by itself may be given its id"
    alone.finish()
    for record, loss in zip(records, (1.0, 2.0), strict=True):
        record.log({"val/loss": loss}, step=1)
        wandb_record.end(record, b"", Summary(status="completed"), settings, timeout=30)
    for run, loss in zip(runs, (1.0, 2.0), strict=True):
        (folder,) = run.wandb.glob("offline-run-*")
        assert [row["val/loss"] for row in wandb_files.history(folder)] == [loss]
        header = wandb_files.header(folder)
        assert (header.display_name, header.run_group, list(header.tags)) == (run.path.name, "sweep", ["small"])


def test_wandb_environment_variables_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROJECT", "ENTITY", "RUN_GROUP", "TAGS", "NAME", "NOTES"):
        monkeypatch.setenv(f"WANDB_{name}", f"their-{name.lower()}")
    monkeypatch.setenv("WANDB_SILENT", "false")
    run = RunDirectory(tmp_path / "run")
    record = wandb_record.begin(WandbConfig(), run, {}, mode="offline", run_id=None, is_live=True, group=None)
    record.finish()
    (folder,) = run.wandb.glob("offline-run-*")
    header = wandb_files.header(folder)
    assert (header.project, header.entity, header.run_group) == ("their-project", "their-entity", "their-run_group")
    assert (list(header.tags), header.display_name, header.notes) == (["their-tags"], "their-name", "their-notes")


@pytest.mark.parametrize("is_private", [True, False])
def test_private_record_names_no_machine_or_user(
    is_private: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "https://jane-doe:t0ken@example.org/secret.git"
    for words in (["init", "-q"], ["remote", "add", "origin", address], ["config", "user.email", "jane-doe@a.org"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["nanolm", f"dataset.path={tmp_path}/book.txt"])
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    settings = WandbConfig(private=is_private)
    config = {"dataset.path": f"{tmp_path}/book.txt", "dataset.url": f"{address}?sig=t0ken"}
    record = wandb_record.begin(settings, run, config, mode="offline", run_id=None, is_live=True, group=None)
    summary = Summary(status="failed", error=f"'{tmp_path}/book.txt'", parent={"run": f"{tmp_path}/parent"})
    wandb_record.end(record, b"", summary, settings, timeout=30)
    (folder,) = run.wandb.glob("offline-run-*")
    host = wandb_files.header(folder).host
    assert host == ("" if is_private else socket.gethostname())
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert (str(tmp_path).encode() in content) == (not is_private)
    assert (sys.executable.encode() in content) == (not is_private)
    assert b"jane-doe:" not in content.replace(b"https://jane-doe:@", b"")
    assert (b"jane-doe" in content) == (not is_private)
    assert b"t0ken@" not in content
    assert (wandb_files.config(folder)["dataset.path"] == "~/book.txt") == is_private
    assert wandb_files.summary(folder)["status"] == "failed"


def test_samples_are_read_from_the_run_only(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    assert wandb_record.read_samples(run) == b""
    (tmp_path / "secret").write_text("secret")
    run.samples.symlink_to(tmp_path / "secret")
    with pytest.raises(RunError, match="it is a link to"):
        wandb_record.read_samples(run)
    run.samples.unlink()
    with run.samples.open("wb") as file:
        file.truncate(wandb_record.MAX_SAMPLE_BYTES + 1)
    with pytest.raises(RunError, match="more than 64,000,000"):
        wandb_record.read_samples(run)


def test_continued_record_stays_in_the_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.wandb.mkdir(parents=True)
    (run.wandb / "offline-run-20990101_000000-abc").symlink_to(tmp_path)
    begin = functools.partial(wandb_record.begin, WandbConfig(), run, {}, mode="offline", is_live=False, group=None)
    with pytest.raises(RunError, match="is a link, which is not followed"):
        begin(run_id="abc")
    with pytest.raises(RunError, match="must not contain '/'"):
        begin(run_id="../../abc")


@pytest.mark.slow
def test_sweep_jobs_are_runs_of_one_group(nanolm: Nanolm, small_text: Path) -> None:
    (nanolm.folder / "breaking.py").write_text(
        "from nanolm.registry import SCHEDULERS\n"
        "@SCHEDULERS.register('breaks')\n"
        "def breaks(step, max_steps, config):\n    return 1 if step < 4 else 1 / 0\n"
    )
    line = (*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=6", "trainer.eval_every=3")
    line = (*line, "trainer.log_every=1", "logger=wandb", "plugins=[breaking]", "hydra.sweep.dir=outputs/rates")
    done = nanolm("train", "-m", *line, "scheduler=constant,breaks,linear")
    assert done.returncode == 1, done.stderr
    found = {}
    for path in (nanolm.folder / "outputs" / "rates").glob("*/config.yaml"):
        summary = RunDirectory(path.parent).read_summary()
        (folder,) = (path.parent / "wandb").glob(f"offline-run-*-{summary.wandb_id}")
        header = wandb_files.header(folder)
        assert (header.run_group, header.display_name) == ("rates", path.parent.name)
        found[wandb_files.config(folder)["scheduler.name"]] = (summary, folder)
    assert {name: summary.status for name, (summary, _) in found.items()} == {
        "constant": "completed",
        "breaks": "failed",
        "linear": "completed",
    }
    assert len({summary.wandb_id for summary, _ in found.values()}) == 3
    for name, (summary, folder) in found.items():
        assert wandb_files.exit_codes(folder) == [1 if name == "breaks" else 0]
        told = wandb_files.summary(folder)
        for key in ("status", "step", "parameters", "best_val_loss", "seed"):
            assert told[key] == getattr(summary, key)
        val = [row for row in wandb_files.history(folder) if "val/loss" in row]
        assert [row["_step"] for row in val] == ([3] if name == "breaks" else [3, 6])
        assert val[-1]["val/loss"] == summary.final_val_loss
        lines = wandb_record.baselines(summary)
        assert {"baseline/counted_bigram", "baseline/gzip_bits_per_byte"} <= set(lines)
        assert all({key: row[key] for key in lines} == lines for row in val)
