import pytest
import torch

from nanolm.config import Precision
from nanolm.errors import SettingsError
from nanolm.training.precision import NumberFormat, choose_device

CPU = torch.device("cpu")


def test_a_cpu_computes_in_fp32_unless_it_is_told_otherwise() -> None:
    assert NumberFormat(Precision.auto, CPU).name == "fp32"
    assert NumberFormat(Precision.auto, CPU).scaler is None
    layer = torch.nn.Linear(2, 2)
    for precision, dtype in ((Precision.fp32, torch.float32), (Precision.bf16, torch.bfloat16)):
        with NumberFormat(precision, CPU).autocast():
            assert layer(torch.ones(1, 2)).dtype == dtype


def test_fp16_scales_its_loss() -> None:
    assert NumberFormat(Precision.fp16, CPU).scaler is not None


def test_a_device_that_is_not_here_is_named() -> None:
    assert choose_device("cpu") == CPU
    for name in ("CPU", "", "cuda:", "cuda:01", "gpu"):
        with pytest.raises(SettingsError, match=f"no device is called '{name}'"):
            choose_device(name)
    with pytest.raises(SettingsError, match="no device 'cuda:200'"):
        choose_device("cuda:200")
    with pytest.raises(SettingsError, match=r"no device 'cuda:99'[\s\S]*here are: cpu"):
        choose_device("cuda:99")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_chosen_and_computes_in_bf16() -> None:
    device = choose_device("auto")
    assert device.type == "cuda"
    assert NumberFormat(Precision.auto, device).name == "bf16"
