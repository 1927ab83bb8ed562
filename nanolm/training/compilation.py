"""Compilation of a model together with its loss: whether it pays, whether the machine can, and how."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
from typing import Any

import torch

from nanolm.config.batch_schedule import stages, total_tokens
from nanolm.config.run import Config
from nanolm.errors import SettingsError
from nanolm.model.count import mean_flops_per_token
from nanolm.training.step import LossFn

# trainer.compile=auto compiles on a GPU if a run would take at least this long without. Compiling takes one to two
# minutes, and is assumed to save a third of a step.
MIN_EAGER_SECONDS = 300.0
# Assumptions for a step in eager mode: FLOPs per second in bf16, and seconds to launch the kernels of a layer.
ASSUMED_FLOPS, LAYER_SECONDS = 1e14, 4e-4


def choose(config: Config, vocab_size: int, device: torch.device, n_ranks: int = 1) -> tuple[bool, str | None]:
    """Decide whether to compile, before anything is written.

    Returns:
        Whether to compile, and a note if the machine cannot although it would pay.

    Raises:
        SettingsError: trainer.compile=true or trainer.cuda_graphs=true on a machine or device that cannot.
    """
    trainer = config.trainer
    if trainer.cuda_graphs and device.type != "cuda":
        raise SettingsError(
            f"trainer.cuda_graphs=true needs an NVIDIA GPU, and the run is on {device.type}",
            where="trainer.cuda_graphs, trainer.device",
            hint="leave out trainer.cuda_graphs",
        )
    is_auto = trainer.compile == "auto" and not trainer.cuda_graphs
    wanted = pays(config, vocab_size, device, n_ranks) if is_auto else trainer.compile != "false"
    missing = find_missing(device) if wanted else None
    if missing is None:
        return wanted, None
    if is_auto:
        return False, f"trainer.compile=auto: eager mode, because torch.compile {missing}"
    raise SettingsError(
        f"torch.compile {missing}",
        where="trainer.cuda_graphs" if trainer.cuda_graphs else "trainer.compile",
        hint="install it, or use trainer.compile=false, which trains in eager mode"
        + (", and leave out trainer.cuda_graphs" if trainer.cuda_graphs else ""),
    )


def pays(config: Config, vocab_size: int, device: torch.device, n_ranks: int = 1) -> bool:
    """Return whether trainer.compile=auto compiles: on a GPU, if the run is estimated to take MIN_EAGER_SECONDS.

    The estimate depends on the settings only, so that a resumed run computes as before.
    """
    return device.type == "cuda" and eager_seconds(config, vocab_size, n_ranks) >= MIN_EAGER_SECONDS


def eager_seconds(config: Config, vocab_size: int, n_ranks: int = 1) -> float:
    """Estimate the seconds of a whole run on a GPU in eager mode.

    They are a budget in minutes, or else the longer of the run's FLOPs and its kernel launches.
    """
    if config.trainer.max_minutes is not None:
        return 60 * config.trainer.max_minutes
    flops = (mean_flops_per_token(config, vocab_size) or 0) * total_tokens(config)
    n_passes = config.trainer.steps * config.trainer.gradient_accumulation
    return max(flops / n_ranks / ASSUMED_FLOPS, n_passes * config.size.n_layers * LAYER_SECONDS)


def find_missing(device: torch.device) -> str | None:
    """Return what torch.compile lacks on a device, as in "finds no C compiler"; None if nothing is known to lack."""
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (7, 0):
            return "needs a GPU of compute capability 7.0 or higher"
        if importlib.util.find_spec("triton") is None:
            return "needs Triton, which is not installed"
        # Triton compiles the functions that launch its kernels.
        compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang", "cc"]
        return None if any(map(shutil.which, compilers)) else "finds no C compiler"
    if device.type == "cpu":
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            return "finds no C++ compiler"
    return None


def compile_loss(loss_fn: LossFn, n_shapes: int = 1, cuda_graphs: bool = False) -> LossFn:
    """Compile a loss with the model that it calls: Inductor fuses the cast of the logits to fp32 and the cross-entropy.

    Args:
        n_shapes: number of shapes of batches, each of which is compiled separately.
        cuda_graphs: whether to record the kernels as CUDA graphs; then it is called once per update.
    """
    options: dict[str, Any] = {"dynamic": False}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # torch 2.13
        # Earlier runs of the process, with other models, do not count against the limit.
        options["isolate_recompiles"] = True
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * n_shapes)
    if not cuda_graphs:
        return torch.compile(loss_fn, **options)
    compiled = torch.compile(loss_fn, mode="reduce-overhead", **options)

    def record_or_replay(*inputs: Any) -> torch.Tensor:
        # Losses and gradients of the last update are overwritten.
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*inputs)

    return record_or_replay


def compiled_losses(loss_fn: LossFn, config: Config) -> tuple[LossFn, LossFn]:
    """Compile the loss of training, and that of evaluations, which has another shape and no gradients."""
    n_shapes = len({stage.shape for stage in stages(config)})
    return compile_loss(loss_fn, n_shapes, config.trainer.cuda_graphs), compile_loss(loss_fn)
