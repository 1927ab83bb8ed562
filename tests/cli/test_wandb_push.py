import dataclasses
import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import update_summary
from tests import wandb_files
from tests.helpers import SMALL, Nanolm, kill_process_group, wait_until
from tests.wandb_server import run_server

OWN_KEYS = ("_step", "_timestamp", "_runtime")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A completed run without a wandb run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(400)))
    overrides = (*SMALL, "dataset=text", "dataset.path=text.txt", "trainer.max_steps=12", "trainer.eval_every=4")
    overrides = (*overrides, "trainer.log_every=1", "trainer.sample_tokens=4", "hydra.run.dir=run")
    done = Nanolm(folder, folder / "cache")("train", *overrides)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def run(trained: Path, nanolm: Nanolm) -> RunDirectory:
    """A copy of the run, which the test may change."""
    return RunDirectory(shutil.copytree(trained, nanolm.folder / "outputs" / "run"))


def expected(run: RunDirectory) -> dict[int, dict[str, Any]]:
    """Return the expected wandb rows by step, from metrics.jsonl and summary.json."""
    found: dict[int, dict[str, Any]] = {}
    summary = run.read_summary()
    lines = {f"baseline/{name}": loss for name, loss in summary.baseline_losses.items()}
    lines |= {f"baseline/{name}_bits_per_byte": bits for name, bits in summary.baseline_bits_per_byte.items()}
    assert set(lines) >= {"baseline/counted_bigram", "baseline/xz_bits_per_byte"}
    for row in run.read_metrics():
        values = found.setdefault(row.step, {})
        values |= {
            f"{row.split}/{key}": value
            for key, value in dataclasses.asdict(row).items()
            if key not in ("step", "split") and value is not None
        }
        if row.split == "val":
            values |= lines
    return found


def add_setting(run: RunDirectory, text: str) -> None:
    """Add a setting to the group `logger` in config.yaml."""
    content = run.config.read_text()
    assert "\nlogger:\n" in content
    run.config.write_text(content.replace("\nlogger:\n", f"\nlogger:\n  {text}\n"))


def by_step(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    assert len({row["_step"] for row in rows}) == len(rows)
    return {row["_step"]: {key: value for key, value in row.items() if key not in OWN_KEYS} for row in rows}


def only(run: RunDirectory) -> Path:
    """Return the folder of the run's wandb run."""
    (folder,) = run.wandb.glob(f"offline-run-*-{run.read_summary().wandb_id}")
    return folder


def test_offline_push_has_every_row_and_the_summary(run: RunDirectory, nanolm: Nanolm) -> None:
    done = nanolm("wandb", "push", "outputs", "--offline", "--project", "mine", "--group", "few")
    assert done.returncode == 0, done.stderr
    folder = only(run)
    assert f"run      15 rows, steps 1 to 12  wandb/{folder.name}" in done.stdout
    assert by_step(wandb_files.history(folder)) == expected(run)
    header, summary = wandb_files.header(folder), wandb_files.summary(folder)
    assert (header.project, header.run_group, header.display_name) == ("mine", "few", "run")
    assert wandb_files.config(folder)["optimizer.lr"] == 1e-2
    assert (summary["status"], summary["best_val_loss"]) == ("completed", run.read_summary().best_val_loss)
    assert wandb_files.exit_codes(folder) == [0]
    assert (folder / "files" / "samples.jsonl").read_text() == run.samples.read_text()
    assert run.read_summary().status == "completed", "the summary is not changed"


@pytest.mark.slow
def test_push_adds_a_wandb_run_unless_its_id_is_kept(run: RunDirectory, nanolm: Nanolm) -> None:
    ids = []
    for flags in ((), (), ("--keep-id",)):
        assert nanolm("wandb", "push", run.path, "--offline", *flags).returncode == 0
        ids.append(run.read_summary().wandb_id)
        time.sleep(1.1)  # wandb names the folder of a session by its second
    assert ids[0] != ids[1] == ids[2]
    folders = sorted(run.wandb.glob("offline-run-*"))
    assert len(folders) == 3
    assert by_step(wandb_files.history(folders[2])) == expected(run)


def test_online_push_goes_to_the_own_account(run: RunDirectory, nanolm: Nanolm) -> None:
    del nanolm.environment["WANDB_MODE"]
    add_setting(run, "entity: stranger")
    add_setting(run, "address: https://jane:t0ken@example.org/a.txt?sig=t0ken")
    add_setting(run, f"path: {nanolm.folder}/text.txt")
    update_summary(run.summary, wandb_id="theirs", wandb_entity="stranger")
    with run_server("sound") as server, run_server("sound") as theirs:
        artifact = f"wandb-artifact://{theirs.url}/a/b/c:v0"
        with run.config.open("a") as file:
            file.write(
                f"_wandb: 3\nartifacts: ['{artifact}', {{_type: artifactVersion, id: a}}]\nanother: '{artifact}'\n"
            )
        for folder in ("wandb", ".wandb"):
            (run.path / folder).mkdir()
            (run.path / folder / "settings").write_text(f"[default]\nbase_url = {theirs.url}\nentity = stranger\n")
        own = nanolm.folder / "settings"
        own.write_text(f"[default]\nbase_url = {server.url}\n")
        nanolm.environment |= {"WANDB_API_KEY": "0123456789" * 4, "WANDB_CONFIG_DIR": str(own.parent)}
        nanolm.folder = run.path
        done = nanolm("wandb", "push", ".")
        assert done.returncode == 0, done.stderr
        run_id = run.read_summary().wandb_id
        assert run_id is not None
        assert run_id != "theirs"
        announced, sent = done.stdout.splitlines()
        assert announced == f"sending to {server.url}/(your default entity)/nanolm"
        assert sent.endswith(f"{server.url}/me/nanolm/runs/{run_id}")
        assert not theirs.was_called
        assert server.introduced[run_id]["entity"] is None
        assert by_step(server.rows[run_id]) == expected(run)
        assert server.ended == {run_id}
        assert server.files[f"{run_id}/samples.jsonl"] == run.samples.read_text()
        content = b"".join(server.received)
        for private in (f'"{socket.gethostname()}', str(nanolm.folder), sys.executable, "t0ken", "jane"):
            assert private.encode() not in content
    assert run.read_summary().wandb_mode == "online"
    assert not (run.path / ".wandb" / "latest-run").is_symlink()


def test_a_dead_server_is_an_error_with_a_hint(run: RunDirectory, nanolm: Nanolm) -> None:
    del nanolm.environment["WANDB_MODE"]
    nanolm.environment |= {"HOME": str(nanolm.folder), "NETRC": str(nanolm.folder / "netrc"), "WANDB_API_KEY": ""}
    done = nanolm("wandb", "push", run.path)
    assert done.returncode == 2
    assert "not logged in to wandb" in done.stderr
    assert "--offline" in done.stderr
    with run_server("dead") as server:
        nanolm.environment |= {"WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": server.url}
        done = nanolm("wandb", "push", run.path, "--timeout", "2")
    assert done.returncode == 1
    assert "wandb did not accept the run" in done.stderr
    assert "--offline" in done.stderr
    assert "Traceback" not in done.stderr
    assert run.read_summary().wandb_id is None


@pytest.mark.slow
def test_a_server_that_dies_midway_is_an_error(run: RunDirectory, nanolm: Nanolm) -> None:
    del nanolm.environment["WANDB_MODE"]
    row = run.metrics.read_text().splitlines()[-1]
    with run.metrics.open("a") as file:
        file.writelines(json.dumps({**json.loads(row), "step": step}) + "\n" for step in range(13, 5000))
    with run_server("dies midway") as server:
        nanolm.environment |= {"WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": server.url}
        done = nanolm("wandb", "push", run.path, "--timeout", "5", timeout=300)
    assert done.returncode == 1, done.stdout
    assert "the server has not taken everything" in done.stderr
    assert run.read_summary().wandb_id is None


def test_damaged_runs_do_not_stop_the_others(run: RunDirectory, nanolm: Nanolm) -> None:
    for name in ("damaged", "rowless", "locked", "linked", "project"):
        shutil.copytree(run.path, run.path.with_name(name))
    damaged = RunDirectory(run.path.with_name("damaged"))
    lines = damaged.metrics.read_text().splitlines()
    damaged.metrics.write_text("\n".join([*lines[:3], lines[3][:-9], *lines[4:]]) + "\n")
    RunDirectory(run.path.with_name("rowless")).metrics.write_text('{"loss": 1.0}\n')
    linked = RunDirectory(run.path.with_name("linked"))
    linked.samples.unlink()
    linked.samples.symlink_to(nanolm.folder / "secret")
    add_setting(RunDirectory(run.path.with_name("project")), "project: ../a")
    with RunDirectory(run.path.with_name("locked")).claim():
        done = nanolm("wandb", "push", "outputs", "--offline")
    assert done.returncode == 1
    assert "1 of 6 runs sent" in done.stdout
    assert "samples.jsonl cannot be read: it is a link to" in done.stderr
    assert "the wandb project '../a' must not contain '/'" in done.stderr
    assert "line 4 of metrics.jsonl is damaged" in done.stderr
    assert "line 1 of metrics.jsonl is damaged: it has no step or split" in done.stderr
    assert f"another process writes to this run: process {os.getpid()}" in done.stderr
    assert by_step(wandb_files.history(only(run))) == expected(run)
    done = nanolm("wandb", "push", ".", "outputs/nothing", "--offline")
    assert done.returncode == 2
    assert "there is no folder outputs/nothing" in done.stderr


def test_push_restores_rows_lost_by_a_killed_run(nanolm: Nanolm, small_text: Path) -> None:
    overrides = (
        *SMALL,
        "dataset=text",
        f"dataset.path={small_text}",
        "trainer.max_steps=1000000",
        "trainer.eval_every=50",
    )
    overrides = (*overrides, "trainer.log_every=1", "logger=wandb", "hydra.run.dir=run")
    run = RunDirectory(nanolm.folder / "run")
    process = nanolm.start("train", *overrides)
    wait_until(lambda: run.metrics.exists() and len(run.read_metrics()) > 200, process)
    kill_process_group(process)
    rows = expected(run)
    live = only(run)
    assert max((row["_step"] for row in wandb_files.history(live, timeout=0)), default=0) < max(rows), (
        "nothing was lost"
    )
    done = nanolm("wandb", "push", "run", "--offline", "--keep-id")
    assert done.returncode == 0, done.stderr
    (pushed,) = {*run.wandb.glob("offline-run-*")} - {live}
    assert pushed.name.endswith(live.name[-8:]), "the same run of wandb"
    assert by_step(wandb_files.history(pushed)) == rows
    assert wandb_files.exit_codes(pushed) == [1]
    summary = wandb_files.summary(pushed)
    assert summary["status"] == "unfinished"
    assert summary["step"] == max(rows)
    assert summary["best_val_loss"] == min(row["val/loss"] for row in rows.values() if "val/loss" in row)
