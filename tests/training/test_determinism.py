import os
from collections.abc import Iterator

import pytest
import torch

from nanolm.training.determinism import is_deterministic, set_determinism

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def settings_of_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore what the function sets for the whole process."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    yield
    torch.use_deterministic_algorithms(False)


def test_determinism_is_set_on_a_gpu_before_its_first_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    set_determinism(True, CPU)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    set_determinism(True, GPU)
    assert torch.are_deterministic_algorithms_enabled()
    # Only warnings would leave atomic additions in the backward pass of attention.
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_determinism(False, GPU)
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "the user's own value stays"


def test_is_deterministic_by_device_and_setting() -> None:
    assert is_deterministic(False, CPU)
    assert is_deterministic(True, GPU)
    assert not is_deterministic(False, GPU)
    assert not is_deterministic(True, torch.device("mps"))
