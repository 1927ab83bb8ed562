"""Updates that the device skips, so that the host need not wait for losses and gradients between rows."""

import collections
import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanolm.config.run import Config
from nanolm.errors import DivergedError
from nanolm.model.build import build
from nanolm.runs.directory import RunDirectory
from nanolm.training.gating import NonFiniteFlag
from nanolm.training.optimizers import build as optimizers
from nanolm.training.optimizers.foreach import copy_, lerp_, multiply_, subtract_
from nanolm.training.precision import NumberFormat
from nanolm.training.results import StepResult
from nanolm.training.step import MicroBatch, Step, update
from nanolm.training.trainer import training
from tests.helpers import is_same_state, make_config, mostly_slow, small_config, untimed_rows

CPU = torch.device("cpu")
# Those that skip updates on the device.
OPTIMIZERS = ("adam", "adamw", "sgd", "lion", "muon", "schedule_free")
NO_MOMENTUM = ("optimizer=sgd", "optimizer.momentum=0")
# Operators whose result the host waits for.
SYNCHRONIZING = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero")
# No row, evaluation or save between the first step and the last one.
QUIET = (
    "trainer.log_every=1000",
    "trainer.eval_every=1000",
    "trainer.save_every=1000",
    "trainer.max_steps=30",
    "scheduler=constant",
)


class Synchronizations(TorchDispatchMode):
    """Counts operators whose result the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in SYNCHRONIZING:
            self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def synchronizations_per_step(text: Path, folder: Path, *overrides: str) -> float:
    """Train on the CPU, and count synchronizations of the whole loop in steps 3 to 5."""
    config = small_config(text, "size.n_layers=1", *QUIET, *overrides)
    steps = training(config, RunDirectory(folder), show_bar=False, quiet=True)
    for _ in range(2):
        next(steps)
    with Synchronizations() as counter:
        for _ in range(3):
            next(steps)
    steps.close()
    return counter.found.total() / 3


@pytest.mark.parametrize(
    ("optimizer", "parts", "precision"),
    mostly_slow(
        [(name, parts, precision) for name in OPTIMIZERS for parts in (1, 4) for precision in ("fp32", "bf16")],
        quick=[("adamw", 4, "fp32"), ("muon", 1, "fp32"), ("schedule_free", 4, "bf16")],
    ),
)
def test_steps_between_rows_do_not_synchronize(
    optimizer: str, parts: int, precision: str, small_text: Path, tmp_path: Path
) -> None:
    overrides = (f"optimizer={optimizer}", f"trainer.gradient_accumulation={parts}", f"trainer.precision={precision}")
    assert synchronizations_per_step(small_text, tmp_path, *overrides) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.clip_norm=null",),
        ("trainer.clip_value=0.1",),
        ("trainer.ema_decay=0.9",),
        ("trainer.log_norms=true",),
        ("trainer.sampling=lines", "trainer.gradient_accumulation=2"),
        ("model.dropout=0.1", "mask=banded_causal", "mask.within_documents=true"),
    ],
)
def test_settings_add_no_synchronization(overrides: tuple[str, ...], small_text: Path, tmp_path: Path) -> None:
    assert synchronizations_per_step(small_text, tmp_path, *overrides) == 0


@pytest.mark.parametrize(
    ("optimizer", "parts", "most"),
    mostly_slow(
        [(name, parts, int(name in OPTIMIZERS[3:])) for name in OPTIMIZERS for parts in (1, 4)],
        quick=[("adamw", 4, 0)],
    ),
)
def test_fp16_synchronizes_only_in_grad_scaler(
    optimizer: str, parts: int, most: int, small_text: Path, tmp_path: Path
) -> None:
    # GradScaler reads whether a gradient has overflowed, unless the optimizer is one of PyTorch's fused ones.
    overrides = (f"optimizer={optimizer}", f"trainer.gradient_accumulation={parts}", "trainer.precision=fp16")
    assert synchronizations_per_step(small_text, tmp_path, *overrides) <= most


@pytest.mark.slow
def test_optimizers_that_cannot_skip_updates_synchronize(small_text: Path, tmp_path: Path) -> None:
    assert synchronizations_per_step(small_text, tmp_path, "optimizer=adafactor") >= 1


@pytest.mark.parametrize("overrides", [*((f"optimizer={name}",) for name in OPTIMIZERS), NO_MOMENTUM])
def test_raised_flag_leaves_weights_and_optimizer_state_unchanged(overrides: tuple[str, ...]) -> None:
    config = make_config("size.n_layers=1", "size.n_heads=2", "size.d_model=16", *overrides)
    torch.manual_seed(0)
    model = build(config, 11)
    built = optimizers.build(config.optimizer, model)
    number_format, flag = NumberFormat(config.trainer.precision, CPU), NonFiniteFlag(CPU)
    tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))
    batch = [MicroBatch(tokens[:, :-1], tokens[:, 1:])]
    for _ in range(2):
        assert not update(model, built, batch, number_format, 1.0, flag=flag).has_diverged
    before = copy.deepcopy((model.state_dict(), built.state_dict()["state"]))

    def spoilt(*inputs: torch.Tensor) -> torch.Tensor:
        return model(*inputs) * math.nan

    assert update(spoilt, built, batch, number_format, 1.0, flag=flag).has_diverged
    assert not update(model, built, batch, number_format, 1.0, flag=flag).has_diverged
    assert is_same_state((model.state_dict(), built.state_dict()["state"]), before)


@pytest.mark.parametrize("found_inf", [0.0, 1.0, None])
def test_gated_operations_change_tensors_unless_found_inf(found_inf: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    flag = None if found_inf is None else torch.tensor(found_inf)
    old, given = (torch.randn(3, 5, generator=generator) for _ in range(2))
    transposed = given.T.contiguous().T
    if found_inf:
        given, transposed = given * math.nan, transposed * math.nan
    for operation, expected in (
        (lambda tensors: subtract_(tensors, [given], 0.3, flag), old - 0.3 * given),
        (lambda tensors: subtract_(tensors, [transposed], 0.3, flag), old - 0.3 * given),
        (lambda tensors: lerp_(tensors, [transposed], 0.2, flag), old.lerp(given, 0.2)),
        (lambda tensors: copy_(tensors, [transposed.clone()], flag), given),
        (lambda tensors: multiply_(tensors, 0.7, flag), old * 0.7),
    ):
        tensor = old.clone()
        operation([tensor])
        torch.testing.assert_close(tensor, old if found_inf else expected)


def diverging(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[Step]:
    """Train a model whose gradient is NaN in one update only."""
    updates = 0

    def spoilt(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal updates
        updates += 1
        return gradient * math.nan if updates == at * config.trainer.gradient_accumulation else gradient

    def build_spoilt(*arguments: Any) -> torch.nn.Module:
        model = build(*arguments)
        model.token_embedding.weight.register_hook(spoilt)
        return model

    monkeypatch.setattr("nanolm.training.setup.build", build_spoilt)
    return training(config, RunDirectory(folder), show_bar=False, quiet=True)


@pytest.mark.parametrize("optimizer", mostly_slow([*OPTIMIZERS, "adafactor"], quick=["adamw", "muon"]))
def test_divergence_is_reported_for_its_own_step(
    optimizer: str, small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (f"optimizer={optimizer}", "trainer.gradient_accumulation=2", "trainer.ema_decay=0.5")
    config = small_config(small_text, *QUIET, "trainer.log_every=10", "trainer.save_every=12", *overrides)
    steps = diverging(config, tmp_path, monkeypatch, at=16)
    step = next(step for step in steps if step.number == 15)
    kept = {name: weight.clone() for name, weight in step.model.state_dict().items()}
    with pytest.raises(DivergedError, match=r"diverged at step 16: loss \d.*, gradient norm nan, lr") as caught:
        list(steps)
    assert "last good checkpoint: step-00000012" in str(caught.value)
    assert is_same_state(step.model.state_dict(), kept)
    run = RunDirectory(tmp_path)
    summary = run.read_summary()
    assert (summary.status, summary.step, summary.tokens) == ("diverged", 15, 15 * 4 * 16)
    assert [row["step"] for row in untimed_rows(run)] == [10]
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000012"]
    assert json.loads(run.summary.read_text())["status"] == "diverged"


def test_reading_a_loss_that_is_not_finite_ends_the_run(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = diverging(small_config(small_text, *QUIET), tmp_path, monkeypatch, at=3)
    step = next(step for step in steps if step.number == 5)
    assert not step.result.is_read
    # Of the weights before step 3.
    assert math.isfinite(step.loss)
    with pytest.raises(DivergedError, match="diverged at step 3:"):
        next(steps)


@pytest.mark.parametrize(
    ("values", "has_overflowed", "has_diverged"),
    [
        ([1.0, 2.0], False, False),
        ([math.nan, 2.0], False, True),
        ([1.0, math.inf], True, True),
        ([1.0, math.inf, 1.0], True, False),
        ([1.0, math.inf, 0.5], True, True),
        ([1.0, 2.0, 0.5], False, False),
        ([math.inf, 2.0, 8.0], False, True),
    ],
)
def test_overflow_of_fp16_is_not_divergence(values: list[float], has_overflowed: bool, has_diverged: bool) -> None:
    result = StepResult(torch.tensor(values))
    assert (result.has_overflowed, result.has_diverged) == (has_overflowed, has_diverged)
