"""Memory that a run does not get: said before it is asked for, or in words when it is refused."""

import errno
from collections.abc import Callable

import numpy as np
import pytest
import torch

from nanolm.errors import OutOfMemoryError, SettingsError
from nanolm.training import memory
from tests.helpers import make_config

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("size.d_model=1000000", "size.n_heads=1"), "the weights, the gradients and the optimizer"),
        (("size.d_model=1000000000000",), "the weights, the gradients and the optimizer"),
        (("size.n_layers=100000", "size.d_model=4096"), "the weights, the gradients and the optimizer"),
        (("trainer.batch_size=2000000000",), "the tokens of a batch"),
        (("trainer.batch_size=2000000000", "model=bigram"), "the logits of a micro-batch"),
    ],
)
def test_run_that_cannot_fit_is_refused_with_both_amounts(overrides: tuple[str, ...], part: str) -> None:
    with pytest.raises(SettingsError, match=rf"needs at least [\d.,]+ [TPG]iB.*this machine has.*{part}") as caught:
        memory.require_memory(make_config(*overrides), 65, CPU)
    assert "gradient accumulation (trainer.gradient_accumulation) makes the same update" in caught.value.hint
    assert overrides[0] in caught.value.where


def test_recommended_gradient_accumulation_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 3 * 2**30)
    words = ("model=bigram", "trainer.batch_size=1000000", "size.context_length=64")
    with pytest.raises(SettingsError) as caught:
        memory.require_memory(make_config(*words), 65, CPU)
    word = caught.value.hint.split(" makes")[0]
    assert word == "trainer.gradient_accumulation=4"
    memory.require_memory(make_config(*words, word), 65, CPU)


def test_run_that_fits_is_accepted() -> None:
    for overrides in ((), ("model=bigram",), ("model=ngram",), ("size=gpt2", "model=gpt2")):
        memory.require_memory(make_config(*overrides), 5000, CPU)


def refuse(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("allocate", "asked"),
    [
        (lambda: torch.empty(10**15), "4000000000000000 bytes"),
        (lambda: torch.empty((2**62, 8)), ""),
        (lambda: torch.empty(2**70), ""),
        (lambda: torch.nn.Linear(2**40, 2**40, device="meta"), ""),
        (lambda: np.empty(10**15), "7.11 PiB for an array"),
        (lambda: np.empty((2**40, 2**40)), ""),
        (lambda: bytearray(2**62), ""),
        (lambda: refuse(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0")), "20.00 GiB"),
        (lambda: refuse(OSError(errno.ENOMEM, "Cannot allocate memory")), ""),
    ],
)
def test_out_of_memory_names_the_amount_and_smaller_settings(allocate: Callable[[], object], asked: str) -> None:
    config = make_config("trainer.batch_size=12", "trainer.gradient_accumulation=4")
    with pytest.raises(OutOfMemoryError) as caught, memory.translate_memory_errors(config):
        allocate()
    assert caught.value.found == "out of memory" + (f": {caught.value.found.split(': ')[-1]}" if asked else "")
    assert asked in caught.value.found
    assert "trainer.batch_size=12" in caught.value.where
    assert caught.value.hint.startswith("trainer.gradient_accumulation=6 makes the same update in less")
    assert caught.value.exit_status == 1


def test_other_errors_are_unchanged() -> None:
    for error in (
        RuntimeError("shapes differ"),
        ValueError("x"),
        OSError(errno.ENOSPC, "full"),
        SettingsError("size overflow"),
    ):
        with pytest.raises(type(error)) as caught, memory.translate_memory_errors(make_config()):
            raise error
        assert caught.value is error
