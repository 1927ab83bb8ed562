import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanolm.errors import SettingsError
from nanolm.training.torch_errors import translate_torch_errors
from tests.helpers import REPOSITORY


def test_operation_without_deterministic_kernel_is_named() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with (
            pytest.raises(SettingsError, match=r"put_ has no deterministic[\s\S]*trainer\.deterministic=false"),
            translate_torch_errors(),
        ):
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    finally:
        torch.use_deterministic_algorithms(False)


def test_other_errors_are_unchanged() -> None:
    error = RuntimeError("something else")
    with pytest.raises(RuntimeError) as found, translate_torch_errors():
        raise error
    assert found.value is error


@pytest.mark.slow
def test_missing_compiler_is_named_with_the_setting(tmp_path: Path) -> None:
    code = (
        "import torch\nfrom nanolm.training.torch_errors import translate_torch_errors\n"
        "with translate_torch_errors():\n torch.compile(lambda x: (x * 2).sin())(torch.ones(3))\n"
    )
    environment = {
        "CXX": "/nonexistent",
        "PATH": "/nonexistent",
        "PYTHONPATH": str(REPOSITORY),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    last = done.stderr.strip().splitlines()
    assert any("torch.compile finds no working C++ compiler" in line for line in last), done.stderr
    assert "trainer.compile=false" in done.stderr
