"""The process in which GPU paths are emulated: `python -m tests.gpu.worker LIBRARY WORK`, answers as JSON."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.gpu import emulation

# One layer is enough for every kind of layer; heads are wide enough for FlexAttention.
SMALL = (
    "logger=none",
    "size.n_layers=1",
    "size.n_heads=2",
    "size.d_model=32",
    "size.context_length=64",
    "trainer.batch_size=4",
    "trainer.ema_decay=0.9",
    "trainer.device=cuda:1",
    "tokenizer=byte",
)
VOCAB_SIZE = 300
# What has been composed before.
BASES: dict[Any, Any] = {}
FORMATS = ("fp32", "tf32", "bf16", "fp16")


def axes() -> dict[str, list[str]]:
    """Every built-in optimizer, positions kind, mask, attention backend and precision."""
    from nanolm.config.mask import PatternConfig
    from nanolm.config.model import Positions
    from nanolm.config.trainer import AttentionBackend
    from nanolm.registry import MASKS, OPTIMIZERS

    return {
        "optimizer": sorted(OPTIMIZERS.schemas),
        "model.positions": [kind.name for kind in Positions],
        "mask": sorted({*MASKS.schemas} - {PatternConfig.name}),
        "trainer.attention_backend": [path.name for path in AttentionBackend],
        "trainer.precision": list(FORMATS),
    }


def pairwise(values: dict[str, list[str]], is_valid: Any) -> list[dict[str, str]]:
    """Combinations in which every valid pair of values of two axes occurs.

    An optimizer sees parameters and gradients only: it is paired with precisions, and not with parts of the model.
    """
    names = list(values)
    everything = [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values.values())]

    def pairs(row: dict[str, str]) -> set[Any]:
        found = itertools.combinations(row.items(), 2)
        return {(a, b) for a, b in found if a[0] != "optimizer" or b[0] == "trainer.precision"}

    pairs_of = {at: pairs(row) for at, row in enumerate(everything) if is_valid(row)}
    missing = set().union(*pairs_of.values())
    chosen = []
    while missing:
        best = max(pairs_of, key=lambda at: len(pairs_of[at] & missing))
        chosen.append(everything[best])
        missing -= pairs_of.pop(best)
    return chosen


# What is no value of an axis, or has more than one layer.
OTHERS = (
    ("model=gpt2", "optimizer=adamw"),
    ("model=gpt2", "optimizer=muon", "trainer.precision=fp16"),
    ("model=gpt3",),
    ("model=bigram",),
    ("model=bare",),
    ("model=gpt2", "model.attention=uniform", "model.positions=none"),
    ("model.activation=swiglu", "trainer.precision=bf16"),
    ("model.logit_softcap=15", "trainer.precision=bf16"),
    ("model.logit_softcap=15", "trainer.precision=fp32"),
    ("model.tie_embeddings=true", "model.head_bias=true"),
    ("size.d_key=16", "size.d_value=24"),
    ("mask=banded_causal", "mask.pattern=SL", "mask.window=8", "size.n_layers=2"),
    ("mask=banded_causal", "mask.within_documents=true", "trainer.attention_backend=blocked"),
    ("trainer.gradient_accumulation=2",),
    ("trainer.gradient_accumulation=2", "optimizer=muon", "trainer.precision=fp16"),
    ("trainer.clip_norm=null", "trainer.clip_value=0.5"),
)


def combinations() -> list[tuple[str, ...]]:
    """The overrides of every combination that is tried."""
    from nanolm.config.checks import check

    @functools.cache
    def allows(positions: str, mask: str, path: str) -> bool:
        words = (f"model.positions={positions}", f"mask={mask}", f"trainer.attention_backend={path}")
        return not check(config_of(*words))

    # Optimizers and precisions go with everything.
    def is_valid(row: dict[str, str]) -> bool:
        return allows(row["model.positions"], row["mask"], row["trainer.attention_backend"])

    rows = pairwise(axes(), is_valid)
    return [tuple(f"{name}={value}" for name, value in row.items()) for row in rows] + list(OTHERS)


def config_of(*overrides: str) -> Any:
    """The config of some overrides. Options of groups are composed once each, and put together here."""
    chosen = {word.split("=")[0]: word for word in overrides if "." not in word}
    settings = [word for word in overrides if "." in word]
    if any(word.split(".")[0] in chosen for word in settings):
        return _composed(*overrides)  # settings of an option
    groups = {group: getattr(_composed(word), group) for group, word in chosen.items()}
    return dataclasses.replace(_composed(*settings), **groups)


@functools.cache
def _composed(*overrides: str) -> Any:
    from nanolm.compose import compose_config

    return compose_config((*SMALL, *overrides), BASES)


# Faults that the checks must find: a tensor on another device, an fp32 tensor of N x V, a wait for the device.
def _misplaced(logits: Any) -> Any:
    import torch

    return logits + torch.ones(logits.size(-1))


def _wide(logits: Any) -> Any:
    return logits.float() * 1.0


def _waiting(logits: Any) -> Any:
    return logits * logits.detach().sum().item()


FAULTS = {"misplaced": _misplaced, "wide": _wide, "waiting": _waiting}


def try_out(overrides: tuple[str, ...], fault: str | None = None) -> dict[str, Any]:
    """Make two updates, an EMA step, an evaluation, a sample and a round trip of the state on fake CUDA tensors.

    Returns:
        What the last update waited for and which wide tensors it made, or the error.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from nanolm.model.build import build
    from nanolm.training.precision import choose_device

    config = config_of(*overrides)
    rows = config.trainer.batch_size // config.trainer.gradient_accumulation
    watch = emulation.watch(rows * config.size.context_length * VOCAB_SIZE, VOCAB_SIZE)
    model = build(config, VOCAB_SIZE)  # outside: masks are checked by their values
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, watch:
        parts = Parts(config, emulation.move(model, mode, choose_device(config.trainer.device)), fault)
        for _ in range(2):
            watch.syncs.clear()
            watch.wide.clear()
            parts.update()
        found = {"syncs": dict(watch.syncs), "wide": sum(watch.wide.values())}
        parts.look_at_gradients()
        parts.average()
        parts.evaluate()
        parts.write()
        parts.save_and_load()
    return found


class Parts:
    """A model and its optimizer on a fake GPU, and what training does with them."""

    def __init__(self, config: Any, model: Any, fault: str | None) -> None:
        import torch

        from nanolm.config.mask import reads_documents
        from nanolm.training import ema
        from nanolm.training.checkpoints.state import TrainState
        from nanolm.training.optimizers import build as optimizers
        from nanolm.training.precision import NumberFormat

        self.config = config
        device = next(model.parameters()).device
        if fault is not None:
            model.register_forward_hook(lambda module, inputs, logits: FAULTS[fault](logits))
        optimizer = optimizers.build(config.optimizer, model)
        number_format = NumberFormat(config.trainer.precision, device)
        self.state = TrainState(model, optimizer, number_format, device, averages=ema.init(model))
        self.reads_documents = reads_documents(config)
        shape = (config.trainer.batch_size, config.size.context_length)
        tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.sides = (tokens, tokens, *((tokens,) if self.reads_documents else ()))

    def update(self) -> None:
        from nanolm.training.step import MicroBatch, update

        settings = self.config.trainer
        parts = map(MicroBatch, *(side.chunk(settings.gradient_accumulation) for side in self.sides))
        update(
            self.state.model,
            self.state.optimizer,
            parts,
            self.state.number_format,
            settings.clip_norm,
            settings.clip_value,
        )

    def look_at_gradients(self) -> None:
        for name, parameter in self.state.model.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.device == self.state.device, f"the gradient of {name} is on {parameter.grad.device}"
            assert parameter.dtype == parameter.grad.dtype, f"the gradient of {name} is {parameter.grad.dtype}"

    def average(self) -> None:
        from nanolm.training import ema
        from nanolm.training.optimizers.build import evaluation_weights

        ema.update(self.state.averages, self.state.model, 0.9, 3)
        with ema.swapped(self.state.averages, self.state.model), evaluation_weights(self.state.optimizer):
            pass

    def evaluate(self) -> None:
        import numpy as np

        from nanolm.data.tokens.stream import Stream
        from nanolm.training.validation import exact_loss

        tokens = np.zeros(self.config.size.context_length + 1, dtype=np.int64)
        exact_loss(
            self.state.model,
            Stream(tokens, scored_bytes=1),
            context_length=self.config.size.context_length,
            stride=self.config.size.context_length,
            vocab_size=VOCAB_SIZE,
            device=self.state.device,
            number_format=self.state.number_format,
            reads_documents=self.reads_documents,
        )

    def write(self) -> None:
        import torch

        from nanolm.model.sampling import sample

        prompt = torch.zeros(3, dtype=torch.int64, device=self.state.device)
        sample(self.state.model, prompt, 2, context_length=self.config.size.context_length)

    def save_and_load(self) -> None:
        import torch

        from nanolm.training.checkpoints.state import flatten, unflatten

        shape, tensors = flatten(self.state.state_dict())
        assert all(tensor.device.type == "cpu" for tensor in tensors.values())
        tree = unflatten(shape, tensors)
        del tree["rng"]  # NumPy's needs values
        self.state.load_state_dict(tree, seed=1)
        for parameter, state in self.state.optimizer.state.items():
            for name, value in state.items():
                # The step of Adafactor is counted on the CPU, as torch has it.
                if isinstance(value, torch.Tensor) and value.dim():
                    assert value.device == parameter.device, f"{name} is on {value.device} after loading"


def measure_memory(overrides: tuple[str, ...]) -> dict[str, int]:
    """The live bytes of four layers of GPT-2 at the peak of a step, and what the formula says."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from nanolm.model import memory_estimate
    from nanolm.model.build import build, count_parameters
    from nanolm.training.precision import choose_device

    vocab_size = 50257
    config = _composed("size=gpt2", "size.n_layers=4", "size.n_heads=12", "size.d_model=768", *overrides)
    # Values do not matter, and drawing 124M of them takes a while.
    with FakeTensorMode():
        model = build(config, vocab_size)
    watch = emulation.watch(counts_bytes=True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, watch:
        parts = Parts(config, emulation.move(model, mode, choose_device(config.trainer.device)), None)
        for _ in range(2):
            parts.update()
    n_parameters = count_parameters(model)
    number_format = parts.state.number_format.name
    return {
        "emulated": watch.peak,
        "formula": memory_estimate.peak_memory(config, n_parameters, vocab_size, number_format),
    }


def main() -> None:
    """Print the answers to the work that the second argument names, as JSON."""
    library, work = sys.argv[1:3]
    emulation.load(Path(library))
    import torch

    torch.set_num_threads(1)
    emulation.pretend()
    from nanolm.model import attention_backends

    attention_backends._flex_kernel = lambda key, use: emulation.kernel_of_flex
    asked = json.loads(work)
    tried = {" ".join(overrides): answer(try_out, overrides) for overrides in combinations()}
    faults = {fault: answer(try_out, asked["with_faults"], fault) for fault in FAULTS}
    emulation.fuse_rms_norm()
    memory = {" ".join(overrides): answer(measure_memory, tuple(overrides)) for overrides in asked["memory"]}
    print(json.dumps({"tried": tried, "faults": faults, "memory": memory}))
    sys.stdout.flush()
    os._exit(0)  # fake tensors that outlive their mode abort the process at its exit


def answer(function: Any, *arguments: Any) -> dict[str, Any]:
    """What a function returns, or its error in words."""
    try:
        return function(*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
