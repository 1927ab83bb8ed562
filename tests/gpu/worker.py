"""The process that emulates GPUs and prints its results as JSON: `python -m tests.gpu.worker LIBRARY WORK`."""

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

# One layer; heads are wide enough for FlexAttention.
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
# Compositions that are reused.
BASES: dict[Any, Any] = {}
FORMATS = ("fp32", "tf32", "bf16", "fp16")


def axes() -> dict[str, list[str]]:
    """Return every built-in optimizer, positional encoding, mask, attention backend and precision."""
    from nanolm.config.mask import PatternConfig
    from nanolm.config.model import Positions
    from nanolm.config.trainer import AttentionBackend
    from nanolm.registry import MASKS, OPTIMIZERS

    return {
        "optimizer": sorted(OPTIMIZERS.schemas),
        "model.positions": [kind.name for kind in Positions],
        "mask": sorted({*MASKS.schemas} - {PatternConfig.name}),
        "trainer.attention_backend": [backend.name for backend in AttentionBackend],
        "trainer.precision": list(FORMATS),
    }


def pairwise(values: dict[str, list[str]], is_valid: Any) -> list[dict[str, str]]:
    """Choose combinations that contain every valid pair of values of two axes.

    Optimizers are paired with precisions only, because they do not depend on parts of the model.
    """
    names = list(values)
    rows = [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values.values())]

    def pairs(row: dict[str, str]) -> set[Any]:
        found = itertools.combinations(row.items(), 2)
        return {(a, b) for a, b in found if a[0] != "optimizer" or b[0] == "trainer.precision"}

    pairs_of = {at: pairs(row) for at, row in enumerate(rows) if is_valid(row)}
    missing = set().union(*pairs_of.values())
    chosen = []
    while missing:
        best = max(pairs_of, key=lambda at: len(pairs_of[at] & missing))
        chosen.append(rows[best])
        missing -= pairs_of.pop(best)
    return chosen


# Settings that are not on an axis, or need more than one layer.
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
    """Return the overrides of all combinations."""
    from nanolm.config.checks import check

    @functools.cache
    def allows(positions: str, mask: str, backend: str) -> bool:
        overrides = (f"model.positions={positions}", f"mask={mask}", f"trainer.attention_backend={backend}")
        return not check(make_config(*overrides))

    # Optimizers and precisions are valid with everything.
    def is_valid(row: dict[str, str]) -> bool:
        return allows(row["model.positions"], row["mask"], row["trainer.attention_backend"])

    rows = pairwise(axes(), is_valid)
    return [tuple(f"{name}={value}" for name, value in row.items()) for row in rows] + list(OTHERS)


def make_config(*overrides: str) -> Any:
    """Make a config from overrides, from options of groups that are each composed once."""
    chosen = {override.split("=")[0]: override for override in overrides if "." not in override}
    settings = [override for override in overrides if "." in override]
    if any(override.split(".")[0] in chosen for override in settings):
        return _composed(*overrides)  # settings that belong to a chosen option
    groups = {group: getattr(_composed(option), group) for group, option in chosen.items()}
    return dataclasses.replace(_composed(*settings), **groups)


@functools.cache
def _composed(*overrides: str) -> Any:
    from tests.composition import compose_config

    return compose_config((*SMALL, *overrides), BASES)


# Faults that the tests must detect: a tensor on another device, an fp32 tensor of BTxV, a synchronization.
def _misplaced(logits: Any) -> Any:
    import torch

    return logits + torch.ones(logits.size(-1))


def _wide(logits: Any) -> Any:
    return logits.float() * 1.0


def _synchronizing(logits: Any) -> Any:
    return logits * logits.detach().sum().item()


FAULTS = {"misplaced": _misplaced, "wide": _wide, "synchronizing": _synchronizing}


def try_out(overrides: tuple[str, ...], fault: str | None = None) -> dict[str, Any]:
    """Run two optimizer steps, an EMA step, an evaluation, sampling and a save and load on fake CUDA tensors.

    Returns:
        The synchronizations and wide tensors of the last optimizer step.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from nanolm.model.build import build
    from nanolm.training.precision import choose_device

    config = make_config(*overrides)
    rows = config.trainer.batch_size // config.trainer.gradient_accumulation
    watch = emulation.watch(rows * config.size.context_length * VOCAB_SIZE, VOCAB_SIZE)
    model = build(config, VOCAB_SIZE)  # outside of the mode: the values of masks are checked
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, watch:
        trainer = Trainer(config, emulation.move(model, mode, choose_device(config.trainer.device)), fault)
        for _ in range(2):
            watch.syncs.clear()
            watch.wide.clear()
            trainer.update()
        found = {"syncs": dict(watch.syncs), "wide": sum(watch.wide.values())}
        trainer.check_gradients()
        trainer.average()
        trainer.evaluate()
        trainer.sample()
        trainer.save_and_load()
    return found


class Trainer:
    """A model and its optimizer on a fake GPU, with the operations of training."""

    def __init__(self, config: Any, model: Any, fault: str | None) -> None:
        import torch

        from nanolm.config.mask import reads_documents
        from nanolm.training import ema
        from nanolm.training.checkpoints.state import TrainState
        from nanolm.training.gating import NonFiniteFlag
        from nanolm.training.optimizers import build as optimizers
        from nanolm.training.precision import NumberFormat

        self.config = config
        device = next(model.parameters()).device
        if fault is not None:
            model.head.register_forward_hook(lambda module, inputs, logits: FAULTS[fault](logits))
        optimizer = optimizers.build(config.optimizer, model)
        number_format = NumberFormat(config.trainer.precision, device)
        averages = ema.init(model) if config.trainer.is_averaged else None
        self.state = TrainState(model, optimizer, number_format, device, averages=averages)
        self.flag = NonFiniteFlag(device)
        self.reads_documents = reads_documents(config)
        shape = (config.trainer.batch_size, config.size.context_length)
        tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.batch = (tokens, tokens, *((tokens,) if self.reads_documents else ()))

    def update(self) -> None:
        from nanolm.training.step import MicroBatch, loss_function, update

        settings = self.config.trainer
        micro_batches = map(MicroBatch, *(tensor.chunk(settings.gradient_accumulation) for tensor in self.batch))
        update(
            self.state.model,
            self.state.optimizer,
            micro_batches,
            self.state.number_format,
            settings.clip_norm,
            settings.clip_value,
            n_scored=self.batch[1].numel(),
            flag=self.flag,
            loss_fn=loss_function(self.state.model),
        )

    def check_gradients(self) -> None:
        for name, parameter in self.state.model.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.device == self.state.device, f"the gradient of {name} is on {parameter.grad.device}"
            assert parameter.dtype == parameter.grad.dtype, f"the gradient of {name} is {parameter.grad.dtype}"

    def average(self) -> None:
        from nanolm.training import ema
        from nanolm.training.optimizers.build import evaluation_weights

        ema.update(self.state.averages, self.state.model, 0.9)
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

    def sample(self) -> None:
        import torch

        from nanolm.model.sampling import sample

        prompt = torch.zeros(3, dtype=torch.int64, device=self.state.device)
        sample(self.state.model, prompt, 2, context_length=self.config.size.context_length)

    def save_and_load(self) -> None:
        import torch

        from nanolm.training.checkpoints.serialization import flatten, unflatten

        structure, tensors = flatten(self.state.state_dict())
        assert all(tensor.device.type == "cpu" for tensor in tensors.values())
        state_dict = unflatten(structure, tensors)
        del state_dict["rng"]  # NumPy generators need values
        self.state.load_state_dict(state_dict, seed=1)
        for parameter, state in self.state.optimizer.state.items():
            for name, value in state.items():
                # torch's Adafactor counts steps on the CPU.
                if isinstance(value, torch.Tensor) and value.dim():
                    assert value.device == parameter.device, f"{name} is on {value.device} after loading"


def measure_memory(overrides: tuple[str, ...]) -> dict[str, int]:
    """Return the peak of live bytes in a step of GPT-2 124M, or of some of its layers, and the formula's estimate."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from nanolm.model import memory_estimate
    from nanolm.model.build import build, count_parameters
    from nanolm.training.precision import choose_device

    vocab_size = 50257
    config = _composed("size=gpt2", "size.n_heads=12", "size.d_model=768", *overrides)
    # Values are not needed, and drawing 124M of them is slow.
    with FakeTensorMode():
        model = build(config, vocab_size)
    watch = emulation.watch(counts_bytes=True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, watch:
        trainer = Trainer(config, emulation.move(model, mode, choose_device(config.trainer.device)), None)
        for _ in range(2):
            trainer.update()
    n_parameters = count_parameters(model)
    number_format = trainer.state.number_format.name
    return {
        "emulated": watch.peak,
        "formula": memory_estimate.peak_memory(config, n_parameters, vocab_size, number_format),
    }


def main() -> None:
    """Print the results of the work in the second argument as JSON."""
    library, work = sys.argv[1:3]
    emulation.load(Path(library))
    import torch

    torch.set_num_threads(1)
    emulation.pretend()
    from nanolm.model import attention_backends

    attention_backends._flex_kernel = lambda key, variant: emulation.kernel_of_flex
    request = json.loads(work)
    tried = {" ".join(overrides): result_or_error(try_out, overrides) for overrides in combinations()}
    faults = {fault: result_or_error(try_out, request["with_faults"], fault) for fault in FAULTS}
    emulation.fuse_rms_norm()
    memory = {" ".join(overrides): result_or_error(measure_memory, tuple(overrides)) for overrides in request["memory"]}
    print(json.dumps({"tried": tried, "faults": faults, "memory": memory}))
    sys.stdout.flush()
    os._exit(0)  # fake tensors that outlive their mode abort a normal exit


def result_or_error(function: Any, *arguments: Any) -> dict[str, Any]:
    """Call a function and return its result, or its error as text."""
    try:
        return function(*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
