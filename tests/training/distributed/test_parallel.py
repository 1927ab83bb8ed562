"""Several ranks against one: the same batches, the same losses, one checkpoint for all; and what ends them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file

from nanolm.cli.main import run as nanolm_run
from nanolm.config.checks import check
from nanolm.config.trainer import Parallel
from nanolm.errors import SettingsError
from nanolm.runs.directory import RunDirectory
from nanolm.training import evaluation, rng
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.fork import Parent
from nanolm.training.distributed import parallel as distributed
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks, process_group
from nanolm.training.trainer import train
from tests.forks import Forked
from tests.helpers import (
    LONG_RUN,
    REPOSITORY,
    SMALL,
    Nanolm,
    final_state,
    has_reached_step,
    is_same_state,
    make_config,
    untimed_rows,
    wait_until,
)

N = 2
STEPS = 50
COMMON = (
    *SMALL,
    "optimizer=adamw",
    "dataset=text",
    "trainer.log_every=1",
    "trainer.eval_every=20",
    "trainer.save_every=20",
    "trainer.sample_tokens=8",
    "scheduler=constant",
    "scheduler.warmup_steps=3",
    "trainer.estimate_batches=2",
)
TEST_SPLIT = ("dataset.test_fraction=0.1",)
AVERAGED = ("trainer.ema_decay=0.9", "trainer.log_norms=true")
STAGES = ("trainer.batch_size_schedule=[[0.6,8]]", "trainer.context_length_schedule=[[0.4,10]]")
# Each is trained by one rank and by two.
CASES = {
    "plain": (*AVERAGED, *TEST_SPLIT),
    "fsdp": (*AVERAGED, *TEST_SPLIT, "trainer.parallel=fsdp"),
    "accumulated": ("trainer.gradient_accumulation=2", "trainer.clip_norm=0.1", *STAGES),
    "accumulated_fsdp": ("trainer.parallel=fsdp", "trainer.gradient_accumulation=2", "trainer.clip_norm=0.1"),
    "padded": ("trainer.sampling=lines", "trainer.gradient_accumulation=2", "size.context_length=64"),
    "padded_fsdp": (*TEST_SPLIT, "trainer.sampling=lines", "trainer.parallel=fsdp", "size.context_length=64", *STAGES),
    "clipped_by_value": ("trainer.clip_norm=null", "trainer.clip_value=0.001", "trainer.parallel=fsdp"),
    "muon": ("optimizer=muon", "model=gpt2"),
    "schedule_free": (
        *TEST_SPLIT,
        "optimizer=schedule_free",
        "trainer.parallel=fsdp",
        "model=gpt2",
        "trainer.eval_every=4",
    ),
}
SHORT = 12


def max_steps(case: str) -> int:
    return STEPS if case in ("plain", "fsdp") else SHORT


def environment(rank: int, n: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    words = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(word) for name, word in words.items()} | on_this_machine()


def on_this_machine() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1"} | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(arguments: Sequence[str], folder: Path) -> list[Forked]:
    port = free_port()
    return [Forked(arguments, folder, {**os.environ, **environment(rank, N, port)}) for rank in range(N)]


def ended(processes: Sequence[subprocess.Popen[str] | Forked], timeout: float = 100) -> list[tuple[int, str, str]]:
    """Return exit status, output and errors of each process; all are ended."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def train_on_ranks(jobs: list[tuple[Path, tuple[str, ...]]], folder: Path) -> list[str]:
    """Trains the runs one after another on N ranks; returns how each ended on every rank."""
    for run, _ in jobs:
        run.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([(str(run), overrides) for run, overrides in jobs]))
    results = ended(start_ranks(["tests.training.distributed.on_ranks", str(folder / "jobs.json")], folder))
    for status, _, errors in results:
        assert status == 0, errors
    said = [output.split() for _, output, _ in results]
    assert said[0] == said[1]
    return said[0]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "small.txt"
    lines = (f"{n} and {n + 1}{', and more' * (n % 3)} make {2 * n + 1}, {n % 7} is left over.\n" for n in range(99))
    path.write_text("".join(lines), encoding="utf-8")
    return f"dataset.path={path}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    """A folder of runs: NAME-1 is trained by one rank, NAME-2 by two.

    Beside CASES there is `moved`, which goes from two ranks to one and back, and `dropped`, a run with dropout on two
    ranks, whole and in two parts.
    """
    folder = tmp_path_factory.mktemp("runs")

    def on_one(name: str, overrides: tuple[str, ...], steps: int) -> None:
        (folder / name).mkdir(exist_ok=True)
        train(make_config(*COMMON, text, *overrides, f"trainer.max_steps={steps}"), RunDirectory(folder / name))

    def job(name: str, overrides: tuple[str, ...], steps: int) -> tuple[Path, tuple[str, ...]]:
        return folder / name, (*COMMON, text, *overrides, f"trainer.max_steps={steps}")

    dropout = ("model.dropout=0.3",)
    jobs = [job(f"{case}-2", overrides, max_steps(case)) for case, overrides in CASES.items()]
    jobs += [job(f"moved_{name}-2", CASES[name], 17) for name in ("plain", "fsdp")]
    jobs += [job("dropped-2", dropout, 20), job("dropped_in_parts-2", dropout, 11)]
    jobs += [job("dropped_in_parts-2", dropout, 20), job("fails-2", ("model=fails_on_one_rank",), 20)]
    said = train_on_ranks(jobs, folder)
    assert said == ["completed"] * (len(jobs) - 1) + ["DivergedError"]
    for case, overrides in CASES.items():
        on_one(f"{case}-1", overrides, max_steps(case))
    for name in ("plain", "fsdp"):
        on_one(f"moved_{name}-2", CASES[name], 34)
    train_on_ranks([job(f"moved_{name}-2", CASES[name], STEPS) for name in ("plain", "fsdp")], folder)
    return folder


def losses(run: Path, split: str) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in untimed_rows(RunDirectory(run)) if row["split"] == split}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_reach_the_losses_of_one(case: str, runs: Path) -> None:
    one, two = runs / f"{case}-1", runs / f"{case}-2"
    assert len(losses(one, "train")) == max_steps(case)
    for split in ("train", "val"):
        assert losses(two, split) == pytest.approx(losses(one, split), abs=1e-5)
    of_one, of_two = (untimed_rows(RunDirectory(run)) for run in (one, two))
    for key in ("grad_norm", "lr", "estimated_loss", "estimated_train_loss"):
        found, expected = ([row[key] for row in some if key in row] for some in (of_two, of_one))
        assert found == pytest.approx(expected, rel=1e-4)
    assert [row["tokens"] for row in of_two] == [row["tokens"] for row in of_one]
    assert (two / "samples.jsonl").read_text() == (one / "samples.jsonl").read_text()


@pytest.mark.parametrize(
    "case", [case for case, overrides in CASES.items() if "dataset.test_fraction=0.1" in overrides]
)
def test_test_split_is_scored_by_all_ranks(case: str, runs: Path) -> None:
    one, two = (RunDirectory(runs / f"{case}-{n}").read_summary() for n in (1, 2))
    assert one.test_loss is not None
    assert two.test_loss == pytest.approx(one.test_loss, abs=1e-4)
    assert [score["steps_done"] for score in two.test_history] == [max_steps(case)]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_compiled_run_on_two_ranks_equals_that_on_one(parallel: str, text: str, tmp_path: Path) -> None:
    line = (*COMMON, text, "trainer.max_steps=8", f"trainer.parallel={parallel}")
    one = tmp_path / "one"
    one.mkdir()
    train(make_config(*line), RunDirectory(one))
    words = [*line, "trainer.compile=true", "hydra.run.dir=two"]
    (status, _, errors), (other_status, *_) = ended(start_ranks(["nanolm", "train", *words], tmp_path), timeout=300)
    assert (status, other_status) == (0, 0), errors
    for split in ("train", "val"):
        assert losses(tmp_path / "two", split) == pytest.approx(losses(one, split), rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_checkpoint_is_independent_of_the_world_size(case: str, runs: Path) -> None:
    (one, state_of_one), (two, state_of_two) = (final_state(RunDirectory(runs / f"{case}-{n}")) for n in (1, 2))
    torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(
        state_of_two["optimizer"]["state"], state_of_one["optimizer"]["state"], atol=1e-4, rtol=1e-2
    )
    assert state_of_two["optimizer"]["param_groups"] == state_of_one["optimizer"]["param_groups"]
    assert len(state_of_two.pop("rng_of_other_ranks")) == N - 1
    assert state_of_two.keys() == state_of_one.keys()


@pytest.mark.parametrize("case", ["plain-2", "fsdp-2", "moved_plain-2", "moved_fsdp-2"])
def test_averages_and_norms_equal_those_of_one_rank(case: str, runs: Path) -> None:
    averages = []
    for name in ("plain-1", case):
        found, _ = checkpoint.newest(runs / name / "checkpoints")
        assert found is not None
        averages.append(load_file(found.path / checkpoint.AVERAGES))
    torch.testing.assert_close(averages[1], averages[0], atol=1e-4, rtol=1e-3)
    # A run that moves is evaluated where it stops as well.
    of_one, of_more = (
        {(row["step"], row["split"]): row for row in untimed_rows(RunDirectory(runs / name))}
        for name in ("plain-1", case)
    )
    for place, expected in of_one.items():
        for kind in ("weight_norms", "grad_norms"):
            assert of_more[place].get(kind, {}) == pytest.approx(expected.get(kind, {}), rel=1e-3, abs=1e-5)
        if place[1] == "val":
            assert of_more[place]["ema_loss"] == pytest.approx(expected["ema_loss"], abs=1e-5)


@pytest.mark.parametrize("case", ["plain", "fsdp"])
def test_run_resumes_on_another_number_of_ranks(case: str, runs: Path) -> None:
    run = runs / f"moved_{case}-2"
    assert losses(run, "train") == pytest.approx(losses(runs / "plain-1", "train"), abs=1e-5)
    said = (run / "train.log").read_text()
    starts = [line for line in said.splitlines() if "resumes from step" in line]
    for line, step, ranks in zip(starts, (17, 34), ("2 -> 1", "1 -> 2"), strict=True):
        assert f"resumes from step {step} with " in line
        assert f"ranks: {ranks}" in line


def test_each_rank_restores_its_own_dropout_generator(runs: Path) -> None:
    whole, parted = RunDirectory(runs / "dropped-2"), RunDirectory(runs / "dropped_in_parts-2")
    train_rows = [[row for row in untimed_rows(run) if row["split"] == "train"] for run in (whole, parted)]
    assert train_rows[0] == train_rows[1]
    (weights, state), (weights_in_parts, state_in_parts) = final_state(whole), final_state(parted)
    assert is_same_state(weights, weights_in_parts)
    assert is_same_state(state["optimizer"], state_in_parts["optimizer"])
    assert is_same_state(state["rng_of_other_ranks"], state_in_parts["rng_of_other_ranks"])
    assert not torch.equal(state["rng"]["torch"], state["rng_of_other_ranks"][0]["torch"])


def test_sharded_rank_holds_only_its_shards(text: str, tmp_path: Path) -> None:
    """Neither the model, as it is filled, nor half-precision copies of its weights, between the passes of a step."""
    words = ["tests.training.distributed.sharded_on_ranks", text.removeprefix("dataset.path="), str(tmp_path / "run")]
    results = ended(start_ranks(words, tmp_path))
    assert [status for status, _, _ in results] == [0, 0], results
    first, second = (json.loads(output.splitlines()[-1]) for _, output, _ in results)
    assert first["built_on"] == ["cpu", "meta"]
    assert second["built_on"] == ["meta"]
    assert first["own"] + second["own"] == first["whole"]
    for found in (first, second):
        assert found["own"] <= found["whole"] * 0.6
        assert found["kept_weight_bytes"] == 0
        assert found["gradient_dtypes"] == ["torch.float32"]


def test_ddp_keeps_one_copy_of_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 2)
    found = {}

    class Wrapped(torch.nn.parallel.DistributedDataParallel):
        def __init__(self, module: torch.nn.Module, **settings: Any) -> None:
            found.update(settings)

    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Wrapped)
    distributed.parallelize(model, Parallel.ddp, Ranks(0, 2), torch.device("cpu"))
    assert found["gradient_as_bucket_view"] is True


def test_only_rank_0_samples_a_replicated_model(monkeypatch: pytest.MonkeyPatch) -> None:
    wrote = []
    monkeypatch.setattr(evaluation, "write_sample", lambda setup: wrote.append(setup.ranks.rank) or "")
    monkeypatch.setattr(evaluation, "split_loss", lambda setup, split: 1.0)
    config = make_config(*COMMON, "dataset.path=unread", "trainer.estimate_batches=0")
    for rank, is_sharded in ((0, False), (1, False), (0, True), (1, True)):
        session = MagicMock()
        session.setup.config, session.setup.ranks = config, Ranks(rank, 2)
        session.setup.state.is_sharded, session.setup.state.averages, session.setup.state.plateau = is_sharded, None, {}
        session.setup.state.best_val_loss, session.setup.state.step = 2.0, 1
        session.setup.state.loss_to_beat = 2.0
        session.setup.state.val_loss = session.setup.streams["val"].bits_per_byte.return_value = 1.0
        evaluation.evaluate(session, 0.0)
    assert wrote == [0, 0, 1]


def test_seed_rank_depends_on_seed_step_and_rank() -> None:
    found = set()
    for place in ((1, 0, 0), (1, 0, 1), (1, 5, 1), (1, 5, 2), (2, 5, 1)):
        rng.seed_rank(*place)
        first = torch.rand(1).item()
        rng.seed_rank(*place)
        assert torch.rand(1).item() == first
        found.add(first)
    assert len(found) == 5
    rng.seed_everything(1)
    assert torch.rand(1).item() in found


def test_non_finite_loss_on_one_rank_ends_all(runs: Path) -> None:
    summary = RunDirectory(runs / "fails-2").read_summary()
    assert (summary.status, summary.step) == ("diverged", 4)
    assert list((runs / "fails-2").glob("checkpoints/*")) == []


def test_only_rank_0_writes(runs: Path) -> None:
    assert (runs / "plain-2" / "train.log").read_text().count("run directory") == 1
    assert RunDirectory(runs / "plain-2").read_summary().ranks == N


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_signal_to_one_rank_stops_all_at_one_step(number: signal.Signals, text: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    line = ["nanolm", "train", *LONG_RUN, text, "hydra.run.dir=run", "resume=auto", "trainer.max_steps=100000"]
    processes = start_ranks(line, tmp_path)
    wait_until(lambda: has_reached_step(run, 20), processes[0])
    processes[1].send_signal(number)
    (status, output, errors), (other_status, other_output, other_errors) = ended(processes)
    assert (status, other_status) == (128 + number,) * 2, errors
    assert "interrupted at step" in output
    assert (other_output, other_errors) == ("", "")
    summary = run.read_summary()
    assert summary.status == "interrupted"
    assert checkpoint.at_step(run.checkpoints, summary.step).step == summary.step


def test_killed_rank_ends_the_others_with_a_clear_error(text: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    processes = start_ranks(
        ["nanolm", "train", *LONG_RUN, text, "hydra.run.dir=run", "trainer.max_steps=100000"], tmp_path
    )
    wait_until(lambda: has_reached_step(run, 60), processes[0])
    processes[1].kill()
    began = time.monotonic()
    (status, _, errors), (other_status, _, _) = ended(processes, timeout=30)
    assert time.monotonic() - began < 30
    assert (status, other_status) == (1, -signal.SIGKILL)
    assert "rank 0 of 2 lost the connection to another rank" in errors
    assert "resume=run" in errors
    assert "Traceback" not in errors
    assert run.read_summary().status == "failed"
    assert checkpoint.newest(run.checkpoints)[0] is not None


@pytest.mark.slow
def test_ranks_of_different_speed_agree_on_the_steps_of_minutes(text: str, tmp_path: Path) -> None:
    line = (*COMMON, text, "model=slower_on_one_rank", "trainer.max_minutes=0.1", "trainer.log_every=100")
    status, steps = train_on_ranks([(tmp_path / "run", line)], tmp_path)
    summary = RunDirectory(tmp_path / "run").read_summary()
    assert (status, summary.max_steps, summary.steps_done) == ("completed", int(steps), int(steps))
    # The slower rank decides. The limits allow for a busy machine.
    assert summary.seconds is not None
    assert 3 < summary.seconds < 12


@pytest.mark.slow
def test_silent_rank_times_out(text: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    line = [
        "nanolm",
        "train",
        *LONG_RUN,
        text,
        "hydra.run.dir=run",
        "trainer.max_steps=100000",
        "trainer.rank_timeout=8",
        "optimizer=adamw",
    ]
    processes = start_ranks([*line, "trainer.parallel=fsdp"], tmp_path)
    wait_until(lambda: has_reached_step(run, 20), processes[0])
    processes[1].send_signal(signal.SIGSTOP)
    try:
        assert processes[0].wait(timeout=60) == 1
    finally:
        processes[1].kill()
    (_, _, errors), _ = ended(processes)
    assert "rank 0 of 2 lost the connection to another rank" in errors
    assert "trainer.rank_timeout" in errors


@pytest.mark.slow
def test_torchrun_restarts_a_killed_run_from_its_checkpoint(nanolm: Nanolm, text: str) -> None:
    run = RunDirectory(nanolm.folder / "run")
    torchrun = ["torch.distributed.run", f"--nproc-per-node={N}", f"--master-port={free_port()}", "--max-restarts=1"]
    line = [
        "nanolm",
        "train",
        *LONG_RUN,
        text,
        "hydra.run.dir=run",
        "resume=auto",
        "trainer.parallel=fsdp",
        "optimizer=adamw",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", *torchrun, "-m", *line, "trainer.max_steps=400"],
        cwd=nanolm.folder,
        env={**nanolm.environment, "PYTHONPATH": str(REPOSITORY), **on_this_machine()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: has_reached_step(run, 60), process)
    # The lock says which process writes.
    os.kill(int(run.lock.read_text().split()[1]), signal.SIGKILL)
    ((status, output, errors),) = ended([process])
    assert status == 0, errors
    assert "resumes from step" in (run.path / "train.log").read_text()
    assert "completed at step 400" in output
    assert list(losses(run.path, "train")) == list(range(10, 401, 10))


def test_mistakes_are_reported_once_and_end_every_rank(text: str, tmp_path: Path) -> None:
    wrong = ["trainer.batch_size=5", "optimizer=muon", "trainer.parallel=fsdp"]
    processes = start_ranks(["nanolm", "train", *LONG_RUN, text, *wrong, "hydra.run.dir=run"], tmp_path)
    (status, _, errors), (other_status, *other_words) = ended(processes)
    assert (status, other_status) == (2, 2)
    assert "trainer.batch_size (5) is not divisible by the 2 processes" in errors
    assert "optimizer=muon needs whole matrices" in errors
    assert other_words == ["", ""]
    assert not (tmp_path / "run").exists()


def found_on(n: int, patch: pytest.MonkeyPatch, *overrides: str) -> list[str]:
    for name, word in environment(0, n, 1).items():
        patch.setenv(name, word)
    return [problem.found for problem in check(make_config(*overrides))]


def test_unsupported_distributed_settings_are_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found_on(4, monkeypatch) == []
    assert found_on(1, monkeypatch, "optimizer=muon", "trainer.parallel=fsdp", "trainer.batch_size=5") == []
    assert found_on(4, monkeypatch, "optimizer=muon") == []
    (shares,) = found_on(4, monkeypatch, "trainer.batch_size=8", "trainer.gradient_accumulation=4")
    assert shares == "trainer.batch_size (8 / 4 processes = 2) is not divisible by trainer.gradient_accumulation (4)"
    problems = found_on(
        4,
        monkeypatch,
        "trainer.batch_size=6",
        "optimizer=adafactor",
        "trainer.parallel=fsdp",
        "trainer.device=cuda:0",
        "model=ngram",
    )
    for number, words in enumerate(
        ["divisible by the 4", "adafactor needs whole", "is a single device", "fitted in one"]
    ):
        assert words in problems[number]
    with pytest.raises(SettingsError, match="-m makes many runs"):
        nanolm_run(["train", "-m", "seed=1,2"])


def test_process_without_torchrun_is_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with process_group(make_config().trainer) as ranks:
        assert ranks is SINGLE_PROCESS
        assert not torch.distributed.is_initialized()
    assert ranks.is_main
    assert ranks.gather(3) == [3]
    assert (ranks.sum(2.5), ranks.max(1)) == (2.5, 1)
    assert ranks.run_on_main_first(lambda: "done") == "done"


def test_incomplete_torchrun_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = environment(1, 8, 1)
    del values["LOCAL_RANK"]
    for name, word in values.items():
        monkeypatch.setenv(name, word)
    assert check(make_config("trainer.batch_size=5")) == []


@pytest.mark.slow
def test_two_ranks_train_adapters_like_one(text: str, tmp_path: Path) -> None:
    line = (*COMMON, text, *AVERAGED, "model=gpt2", "trainer.max_steps=4")
    adapted = (*line, "model.lora.rank=3", "optimizer.lr=0.02")
    parent = RunDirectory(tmp_path / "parent")
    parent.path.mkdir()
    train(make_config(*line), parent)
    found, _ = checkpoint.newest(parent.checkpoints)
    assert found is not None
    (tmp_path / "one").mkdir()
    start = Parent(parent, make_config(*line), found)
    train(make_config(*adapted, "trainer.max_steps=8"), RunDirectory(tmp_path / "one"), parent=start)
    jobs = []
    for kind in ("ddp", "fsdp"):
        shutil.copytree(tmp_path / "one", tmp_path / kind)
        jobs.append((tmp_path / kind, (*adapted, "trainer.max_steps=20", f"trainer.parallel={kind}")))
    train(make_config(*adapted, "trainer.max_steps=20"), RunDirectory(tmp_path / "one"))
    assert train_on_ranks(jobs, tmp_path) == ["completed", "completed"]
    expected = losses(tmp_path / "one", "train")
    weights, _ = final_state(RunDirectory(tmp_path / "one"))
    for kind in ("ddp", "fsdp"):
        assert losses(tmp_path / kind, "train") == pytest.approx(expected, abs=1e-4)
        found_weights, _ = final_state(RunDirectory(tmp_path / kind))
        assert found_weights.keys() == weights.keys()
        assert all("lora" in name for name in weights)
        assert all(torch.allclose(found_weights[name], weights[name], atol=1e-3) for name in weights)
