import math
import mmap
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nanolm.model import count
from nanolm.model.build import build
from nanolm.runs.directory import RunDirectory
from nanolm.training import meters
from nanolm.training.distributed.ranks import SINGLE_PROCESS
from nanolm.training.trainer import train
from tests.forks import FORKS
from tests.helpers import final_state, is_same_state, small_config, untimed_rows

CPU = torch.device("cpu")


def test_norms_by_part_add_up_to_the_total() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1))
    model(torch.randn(5, 3)).sum().backward()
    found = meters.norms(model, SINGLE_PROCESS)
    assert found["weight_norms"]["0"] == pytest.approx(model[0].weight.norm().item())
    total = math.sqrt(sum(norm**2 for norm in found["grad_norms"].values()))
    assert total == pytest.approx(nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("blocks.0.attention.projection.weight", "blocks.0.attention"),
        ("blocks.11.norm.weight", "blocks.11.norm"),
        ("token_embedding.weight", "token_embedding"),
        ("logits", "logits"),
    ],
)
def test_part_of_is_a_module_of_a_layer_or_a_top_level_module(name: str, part: str) -> None:
    assert meters.part_of(name) == part


def test_log_norms_adds_norms_to_rows(small_text: Path, tmp_path: Path) -> None:
    found = []
    for asked in ("true", "false"):
        run = RunDirectory(tmp_path / asked)
        run.path.mkdir()
        line = ("trainer.max_steps=10", "trainer.log_every=5", f"trainer.log_norms={asked}", "trainer.clip_norm=null")
        train(small_config(small_text, *line), run)
        found.append(run)
    row, plain = (next(row for row in untimed_rows(run) if row["split"] == "train") for run in found)
    assert set(row) - set(plain) == {"weight_norms", "grad_norms"}
    assert {"blocks.0.attention", "blocks.1.feed_forward", "token_embedding", "head"} <= set(row["grad_norms"])
    total = math.sqrt(sum(norm**2 for norm in row["grad_norms"].values()))
    assert total == pytest.approx(row["grad_norm"], rel=1e-4)
    assert is_same_state(*(final_state(run)[0] for run in found))


def test_peak_flops_on_cpu_is_the_given_value_or_none() -> None:
    assert meters.peak_flops(CPU, "fp32", None) is None
    assert meters.peak_flops(CPU, "fp32", 1e12) == 1e12


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA T400", None),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
    ],
)
def test_match_gpu_compares_whole_words(name: str, expected: str | None) -> None:
    assert meters.match_gpu(name) == expected


def test_peak_flops_uses_the_index_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {0: "NVIDIA L4", 1: "NVIDIA L40"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: names[device.index])
    assert meters.peak_flops(torch.device("cuda", 1), "bf16", None) == 181e12
    assert meters.peak_flops(torch.device("cuda", 0), "bf16", None) == 121e12


def test_wait_synchronizes_the_given_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    meters._wait(torch.device("cuda", 1))
    meters._wait(CPU)
    assert waited == [torch.device("cuda", 1)]


def test_utilization_is_relative_to_all_devices() -> None:
    assert meters.utilization(1000.0, 10**6, 1e9, 2) == pytest.approx(0.5)
    assert meters.utilization(None, 10**6, 1e9, 1) is None
    assert meters.utilization(1000.0, None, 1e9, 1) is None
    assert meters.utilization(1000.0, 10**6, None, 1) is None


def test_row_has_mfu_if_the_peak_is_known(small_text: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    summary = train(small_config(small_text, "trainer.max_steps=10", "trainer.peak_flops=1e9"), run).summary
    timed = run.read_metrics("train")
    expected = timed[0].tokens_per_second * summary.flops_per_token / 1e9
    assert timed[0].mfu == pytest.approx(expected, rel=0.01)


def test_training_flops_match_the_formula(small_text: Path) -> None:
    config = small_config(small_text, "model=gpt")
    flops = count.training_flops_per_token(config, 65)
    matrices = sum(module.weight.numel() for module in build(config, 65).modules() if isinstance(module, nn.Linear))
    over_context = 4 * config.size.n_layers * config.size.context_length * config.size.d_model
    assert flops == 3 * (2 * matrices + over_context)


def test_measure_peak_flops_returns_a_plausible_value() -> None:
    assert meters.measure_peak_flops(CPU, None) > 1e6


def test_gpu_matmuls_take_longer_than_their_launch() -> None:
    size, _ = meters.product_size(torch.device("cuda", 0))
    fastest = max(peaks["bf16"] for peaks in meters.PEAKS.values() if "bf16" in peaks)
    assert 2 * size**3 / fastest > 20 * 10e-6


def test_peak_memory_includes_freed_memory() -> None:
    # In a process of its own: the peak is that of the whole process.
    child = FORKS.Process(target=use_and_free_memory)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def use_and_free_memory() -> None:
    meters.reset_peak_memory(CPU)
    before = meters.peak_memory(CPU)
    # Not by malloc, which may reuse freed memory.
    with mmap.mmap(-1, 2**28) as held:
        held.write(b"x" * 2**28)
    assert meters.peak_memory(CPU) - before > 0.8 * 2**28


def test_peak_memory_reads_the_status_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("VmPeak:    9000 kB\nVmHWM:    1234 kB\nVmRSS:     999 kB\n")
    monkeypatch.setattr(meters, "STATUS", status)
    assert meters.peak_memory(CPU) == 1234 * 1024


def test_peak_memory_is_none_if_the_system_does_not_report_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "STATUS", tmp_path / "nowhere")
    assert isinstance(meters.peak_memory(CPU), int), "from the module resource"
    monkeypatch.setitem(sys.modules, "resource", None)
    assert meters.peak_memory(CPU) is None
