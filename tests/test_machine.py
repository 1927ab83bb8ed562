import os
from pathlib import Path

import pytest
import torch

from nanolm import machine
from nanolm.training import memory
from tests.helpers import make_config


def test_host_memory_respects_the_cgroup_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    without_limit = machine.host_memory()
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.host_memory() == without_limit
    (tmp_path / "memory.max").write_text("1048576\n")
    assert machine.host_memory() == 1048576
    (tmp_path / "memory.max").unlink()
    monkeypatch.delattr(os, "sysconf")
    assert machine.host_memory() is None
    memory.require_memory(make_config("size.d_model=1000000", "size.n_heads=1"), 65, torch.device("cpu"))
