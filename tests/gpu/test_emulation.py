"""Training on fake CUDA tensors; tests/gpu/emulation.py describes the limits of the emulation."""

import json
import subprocess
import sys
from typing import Any

import pytest

from nanolm.compose import config_folder
from nanolm.config.mask import PatternConfig
from nanolm.config.model import Positions
from nanolm.config.trainer import AttentionBackend, Precision
from tests.gpu import emulation, worker
from tests.helpers import REPOSITORY

# Overrides of the run that each of the worker's faults is injected into.
PLAIN = ("optimizer=adamw", "trainer.precision=bf16")
# Sequences of 1024 tokens, so that the loss and the layers use most of the memory.
LARGE = ("size.context_length=1024", "trainer.ema_decay=null", "optimizer=adamw")
# A step of GPT-2 124M on 16 sequences in bf16, and the most GiB that it may take.
MOST_GIB = {"gpt2": 8, "gpt": 10}
WHOLE = {
    model: (*LARGE, "trainer.batch_size=16", f"model={model}", "size.n_layers=12", "trainer.precision=bf16")
    for model in MOST_GIB
}
MEMORY = [
    (*LARGE, "trainer.batch_size=8", "size.n_layers=4", f"model={model}", f"trainer.precision={precision}", *more)
    for model, precision, more in (
        ("gpt2", "bf16", ("trainer.gradient_accumulation=2",)),
        ("gpt2", "fp32", ()),
        ("gpt", "bf16", ()),
        ("gpt", "fp16", ("trainer.gradient_accumulation=2", "model.logit_softcap=15")),
    )
]

# CUDA is emulated in a process that trains for a minute.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of one worker process, which takes most of a minute."""
    try:
        # In pytest's cache, the library is compiled once for all sessions.
        cache = getattr(pytestconfig, "cache", None)
        library = emulation.build(cache.mkdir("fake_cuda") if cache else tmp_path_factory.mktemp("fake_cuda"))
    except emulation.CannotEmulateError as error:
        pytest.skip(f"CUDA cannot be emulated here: {error}")
    work = json.dumps({"with_faults": PLAIN, "memory": [*MEMORY, *WHOLE.values()]})
    command = [sys.executable, "-m", "tests.gpu.worker", str(library), work]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_combination_trains_evaluates_and_resumes(results: dict[str, Any]) -> None:
    errors = [f"{overrides}: {found['error']}" for overrides, found in results["tried"].items() if "error" in found]
    assert not errors, "\n".join(errors)


def test_combinations_cover_every_option(results: dict[str, Any]) -> None:
    tried = [set(overrides.split()) for overrides in results["tried"]]
    built_in = {
        group: {path.stem for path in config_folder().glob(f"{group}/*.yaml")} for group in ("optimizer", "mask")
    }
    for group, names in (
        ("optimizer", built_in["optimizer"]),
        ("mask", built_in["mask"] - {PatternConfig.name}),
        ("model.positions", Positions.__members__),
        ("trainer.attention_backend", AttentionBackend.__members__),
        ("trainer.precision", {*Precision.__members__} - {"auto"}),
    ):
        for name in names:
            assert any(f"{group}={name}" in overrides for overrides in tried), f"{group}={name}"
    for optimizer in built_in["optimizer"]:
        for precision in ("fp32", "bf16", "fp16"):
            pair = {f"optimizer={optimizer}", f"trainer.precision={precision}"}
            assert any(pair <= overrides for overrides in tried), pair


def test_only_the_loss_makes_fp32_tensors_of_the_vocabulary(results: dict[str, Any]) -> None:
    # Per micro-batch: fp32 logits, log-probabilities and the gradients of both; tanh adds six, a head bias one.
    for overrides, found in results["tried"].items():
        expected = 10 if "softcap" in overrides else 5 if "head_bias" in overrides else 4
        n_micro_batches = 2 if "gradient_accumulation=2" in overrides else 1
        assert found["wide"] <= expected * n_micro_batches, f"{overrides}: {found['wide']}"


def test_a_step_does_not_synchronize(results: dict[str, Any]) -> None:
    # Except in GradScaler, once, if the optimizer is not one of PyTorch's fused ones.
    for overrides, found in results["tried"].items():
        if "adafactor" in overrides:
            continue  # torch's implementation synchronizes twice per parameter
        is_fused = not any(name in overrides for name in ("lion", "muon", "schedule_free"))
        most = int("fp16" in overrides and not is_fused)
        assert sum(found["syncs"].values()) <= most, f"{overrides}: {found['syncs']}"


def test_injected_faults_are_detected(results: dict[str, Any]) -> None:
    plain = results["tried"][next(overrides for overrides in results["tried"] if {*PLAIN} <= {*overrides.split()})]
    faults = results["faults"]
    assert "DeviceMismatch" in faults["misplaced"]["error"]
    assert faults["wide"]["wide"] > plain["wide"]
    assert sum(faults["synchronizing"]["syncs"].values()) > sum(plain["syncs"].values())
    assert set(faults) == {*worker.FAULTS}


def test_peak_memory_is_close_to_the_formula(results: dict[str, Any]) -> None:
    for overrides, found in results["memory"].items():
        assert found.get("formula") == pytest.approx(found.get("emulated"), rel=0.15), (overrides, found)


def test_step_of_gpt2_124m_fits_its_budget(results: dict[str, Any]) -> None:
    for model, most in MOST_GIB.items():
        found = results["memory"][" ".join(WHOLE[model])]
        assert found["emulated"] <= most * 2**30, f"{model}: {found['emulated'] / 2**30:.2f} GiB"
