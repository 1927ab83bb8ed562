import json
from pathlib import Path

import pytest
import torch

from nanolm.config.trainer import Precision
from nanolm.training import cpu_bf16
from nanolm.training.cpu_bf16 import MIN_SPEEDUP, cached_speedup, has_bf16_instructions, measure_speedup
from nanolm.training.precision import resolve

CPU = torch.device("cpu")


def test_speedup_is_measured_without_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    speedup = measure_speedup(repeats=1)
    assert torch.equal(torch.get_rng_state(), before)
    # Converted to fp32, bf16 is slower than fp32.
    assert 0 < speedup < 100 if has_bf16_instructions() else 0 < speedup < MIN_SPEEDUP


def test_speedup_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[float] = []
    monkeypatch.setattr(cpu_bf16, "measure_speedup", lambda: measured.append(1.5) or 1.5)
    path = tmp_path / "cache" / "file.json"
    assert [cached_speedup(path), cached_speedup(path)] == [1.5, 1.5]
    assert len(measured) == 1
    (key,) = json.loads(path.read_text())
    assert f"torch {torch.__version__}" in key
    # A damaged file, or an entry that is not a number, is replaced.
    for text in ("{", json.dumps({key: "fast"}), json.dumps({key: 1.1, "another machine": 2})):
        path.write_text(text)
        cached_speedup(path)
    assert json.loads(path.read_text()) == {key: 1.1, "another machine": 2}
    assert len(measured) == 3


def test_speedup_is_measured_if_the_cache_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_bf16, "measure_speedup", lambda: 2.0)
    (tmp_path / "file").touch()
    assert cached_speedup(tmp_path / "file" / "below.json") == 2


@pytest.mark.parametrize(
    ("has_instructions", "speedup", "expected"),
    [(True, 1.3, Precision.bf16), (True, 1.2, Precision.fp32), (False, 9, Precision.fp32)],
)
def test_auto_uses_bf16_on_a_cpu_where_it_is_faster(
    has_instructions: bool, speedup: float, expected: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path))
    monkeypatch.setattr(cpu_bf16, "has_bf16_instructions", lambda: has_instructions)
    monkeypatch.setattr(cpu_bf16, "measure_speedup", lambda: speedup)
    assert resolve(Precision.auto, CPU) is expected
    assert (tmp_path / "bf16_speedup.json").exists() is has_instructions
    assert resolve(Precision.auto, CPU, "fp32") is Precision.fp32
    assert resolve(Precision.fp32, CPU) is Precision.fp32
