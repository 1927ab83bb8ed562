"""The GPU paths of training on fake CUDA tensors; tests/gpu/emulation.py says what this can show."""

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

# A plain combination, of which each of the worker's faults is made once.
PLAIN = ("optimizer=adamw", "trainer.precision=bf16")
# Sequences of 1024 tokens of GPT-2's vocabulary: the loss and the layers hold most of the memory.
LARGE = ("size.context_length=1024", "trainer.batch_size=8", "trainer.ema_decay=null", "optimizer=adamw")
MEMORY = [
    (*LARGE, f"model={model}", f"trainer.precision={precision}", *more)
    for model, precision, more in (
        ("gpt2", "bf16", ("trainer.gradient_accumulation=2",)),
        ("gpt2", "fp32", ()),
        ("gpt", "bf16", ()),
        ("gpt", "fp16", ("trainer.gradient_accumulation=2", "model.logit_softcap=15")),
    )
]


@pytest.fixture(scope="module")
def answers(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one worker process finds. Building the library and this take most of a minute."""
    try:
        # With pytest's cache the library is compiled once for all sessions.
        cache = getattr(pytestconfig, "cache", None)
        library = emulation.build(cache.mkdir("fake_cuda") if cache else tmp_path_factory.mktemp("fake_cuda"))
    except emulation.CannotEmulateError as error:
        pytest.skip(f"CUDA cannot be emulated here: {error}")
    work = json.dumps({"with_faults": PLAIN, "memory": MEMORY})
    command = [sys.executable, "-m", "tests.gpu.worker", str(library), work]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_combination_trains_evaluates_and_resumes(answers: dict[str, Any]) -> None:
    errors = [f"{words}: {found['error']}" for words, found in answers["tried"].items() if "error" in found]
    assert not errors, "\n".join(errors)


def test_every_option_is_tried(answers: dict[str, Any]) -> None:
    tried = [set(words.split()) for words in answers["tried"]]
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
            assert any(f"{group}={name}" in words for words in tried), f"{group}={name}"
    for optimizer in built_in["optimizer"]:
        for precision in ("fp32", "bf16", "fp16"):
            pair = {f"optimizer={optimizer}", f"trainer.precision={precision}"}
            assert any(pair <= words for words in tried), pair


def test_fp32_tensors_of_the_vocabulary_are_those_of_the_loss(answers: dict[str, Any]) -> None:
    # Per micro-batch: the logits in fp32, their log-probabilities and the gradients of both. tanh adds its own six,
    # and a bias of the head one.
    for words, found in answers["tried"].items():
        expected = 10 if "softcap" in words else 5 if "head_bias" in words else 4
        n_micro_batches = 2 if "gradient_accumulation=2" in words else 1
        assert found["wide"] <= expected * n_micro_batches, f"{words}: {found['wide']}"


def test_an_update_waits_for_the_device_only_where_it_is_known(answers: dict[str, Any]) -> None:
    # The loss and the norm; with two micro-batches their losses, their counts of targets and the norm. GradScaler asks
    # once more where the optimizer is not fused.
    for words, found in answers["tried"].items():
        if "adafactor" in words:
            continue  # torch's asks twice for every parameter
        most = (5 if "gradient_accumulation=2" in words else 2) + ("fp16" in words)
        assert sum(found["syncs"].values()) <= most, f"{words}: {found['syncs']}"


def test_each_fault_is_found(answers: dict[str, Any]) -> None:
    plain = answers["tried"][next(words for words in answers["tried"] if {*PLAIN} <= {*words.split()})]
    faults = answers["faults"]
    assert "DeviceMismatch" in faults["misplaced"]["error"]
    assert faults["wide"]["wide"] > plain["wide"]
    assert sum(faults["waiting"]["syncs"].values()) > sum(plain["syncs"].values())
    assert set(faults) == {*worker.FAULTS}


def test_the_peak_of_a_step_is_that_of_the_formula(answers: dict[str, Any]) -> None:
    for words, found in answers["memory"].items():
        assert found.get("formula") == pytest.approx(found.get("emulated"), rel=0.15), (words, found)
