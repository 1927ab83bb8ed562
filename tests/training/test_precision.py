import pytest
import torch

from nanolm.config.trainer import Precision
from nanolm.errors import SettingsError
from nanolm.training.precision import NumberFormat, choose_device, resolve

CPU = torch.device("cpu")


def test_cpu_defaults_to_fp32() -> None:
    assert NumberFormat(Precision.auto, CPU).name == "fp32"
    assert NumberFormat(Precision.auto, CPU).scaler is None
    layer = torch.nn.Linear(2, 2)
    for precision, dtype in ((Precision.fp32, torch.float32), (Precision.bf16, torch.bfloat16)):
        with NumberFormat(precision, CPU).autocast():
            assert layer(torch.ones(1, 2)).dtype == dtype


def test_fp16_has_a_loss_scale() -> None:
    assert NumberFormat(Precision.fp16, CPU).scaler is not None


def test_unknown_and_missing_devices_are_named() -> None:
    assert choose_device("cpu") == CPU
    for name in ("CPU", "", "cuda:", "cuda:01", "gpu"):
        with pytest.raises(SettingsError, match=f"'{name}' is not a device"):
            choose_device(name)
    with pytest.raises(SettingsError, match="no device 'cuda:200'"):
        choose_device("cuda:200")
    with pytest.raises(SettingsError, match=r"no device 'cuda:99'[\s\S]*available devices: cpu"):
        choose_device("cuda:99")


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> torch.device:
    """Make torch.cuda report a GPU of a compute capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla V100-SXM2-16GB")
    # PyTorch reports emulation as support.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    return torch.device("cuda", 1)


def test_gpu_with_an_index_becomes_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    choose_device("cuda")
    choose_device("cpu")
    assert current == [torch.device("cuda", 1)]


@pytest.mark.parametrize(
    ("capability", "before", "expected"),
    [
        ((7, 0), None, Precision.fp16),
        ((7, 5), None, Precision.fp16),
        ((8, 0), None, Precision.bf16),
        ((9, 0), None, Precision.bf16),
        ((9, 0), "fp16", Precision.fp16),
        ((9, 0), "fp32", Precision.fp32),
        ((7, 0), "bf16", Precision.fp16),
    ],
)
def test_auto_on_gpu_uses_capability_and_earlier_precision(
    capability: tuple[int, int], before: str | None, expected: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = pretend_gpu(monkeypatch, capability)
    assert resolve(Precision.auto, device, before) is expected
    assert resolve(Precision.fp32, device, before) is Precision.fp32


def test_auto_on_cpu_keeps_supported_precisions() -> None:
    assert resolve(Precision.auto, CPU, "bf16") is Precision.bf16
    assert resolve(Precision.auto, CPU, "fp16") is Precision.fp32
    assert resolve(Precision.auto, CPU, "tf32") is Precision.fp32


def test_bf16_is_refused_on_a_gpu_that_emulates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend_gpu(monkeypatch, (7, 0))
    with pytest.raises(SettingsError, match=r"cuda:1 \(Tesla V100[\s\S]*trainer.precision=fp16 or fp32"):
        NumberFormat(Precision.bf16, device)
    with pytest.raises(SettingsError, match="does not support TF32"):
        NumberFormat(Precision.tf32, device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_chooses_a_gpu_with_bf16() -> None:
    device = choose_device("auto")
    assert device.type == "cuda"
    assert NumberFormat(Precision.auto, device).name == "bf16"
