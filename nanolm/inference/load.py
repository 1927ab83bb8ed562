"""Load a model from a run directory. Nothing in the directory is executed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from nanolm import option_types, shell
from nanolm.compose import import_plugins
from nanolm.config.checks import MODEL_CHECKS, check
from nanolm.config.fields import Trait
from nanolm.config.run import Config
from nanolm.config.trainer import AttentionBackend
from nanolm.config.yaml_io import load_yaml
from nanolm.data import tokenizers
from nanolm.data.tokenizers import Tokenizer
from nanolm.errors import RunError, SettingsError
from nanolm.inference.weight_formats import WeightFormat, convert_weights
from nanolm.model.build import build
from nanolm.runs.directory import RunDirectory
from nanolm.training import memory
from nanolm.training.checkpoints import files as checkpoint_files
from nanolm.training.checkpoints.fit import require_fit
from nanolm.training.checkpoints.resume_checks import require_same_settings
from nanolm.training.precision import choose_device


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A loaded run."""

    run: RunDirectory
    config: Config
    tokenizer: Tokenizer
    model: nn.Module
    step: int
    device: torch.device


def load_run(
    path: str,
    checkpoint: str = "best",
    device: str = "auto",
    plugins: Sequence[str] = (),
    weights: str = "trained",
    weight_format: WeightFormat = WeightFormat.float32,
) -> Loaded:
    """Load a model with its settings and tokenizer.

    Args:
        checkpoint: "best" (lowest validation loss), "last", or a step.
        device: as trainer.device.
        plugins: the user's modules that the run was made with; they are not imported unless named here.
        weights: "trained", or "ema" for their exponential moving average (trainer.ema_decay).
        weight_format: number format of the weights; bf16 and int8 change the results a little.

    Raises:
        RunError: the directory is not a run, has no checkpoint yet, or has no averaged weights.
        CheckpointError: the checkpoint is damaged, or of another model than config.yaml describes.
        SettingsError: this machine cannot hold the model.
    """
    run = RunDirectory(path).require()
    chosen = choose_device(device, where="--device")
    import_plugins(plugins)
    config = load_yaml(run.config)
    # Nobody may have checked it since it was written.
    if problems := check(config, MODEL_CHECKS):
        raise RunError(
            f"config.yaml has a setting that no run can have: {problems[0].found}",
            where=str(run.config),
            hint="restore it from a copy of the run",
        )
    # The attention backend was chosen for the machine that trained.
    config.trainer.attention_backend = AttentionBackend.auto
    tokenizer = tokenizers.from_file(run.tokenizer)
    found = _find(run, checkpoint)
    require_same_settings(config, run, found.manifest, found.path, Trait.evaluation)
    require_fit(found, config, tokenizer.vocab_size)
    with memory.translate_memory_errors(config):
        model = build(config, tokenizer.vocab_size)
        found.load_weights(model)
        model.requires_grad_(False).to(chosen).eval()
    if weights == "ema":
        averages = found.load_averages(model)
        if averages is None:
            raise RunError(
                "the checkpoint has no averaged weights",
                where=f"--weights ema, {found.path}",
                hint="leave out --weights, or train with trainer.ema_decay=0.999",
            )
        # Averages have no buffers.
        model.load_state_dict(averages, strict=False)
    convert_weights(model, weight_format)
    return Loaded(run, config, tokenizer, model, found.step, chosen)


def _find(run: RunDirectory, chosen: str) -> checkpoint_files.Checkpoint:
    try:
        chosen = option_types.checkpoint(chosen)
    except SettingsError as error:
        raise SettingsError(f"--checkpoint {error.found}", where="--checkpoint", hint=error.hint) from error
    if chosen not in ("best", "last"):
        return checkpoint_files.at_step(run.checkpoints, int(chosen))
    last, damaged = checkpoint_files.newest(run.checkpoints)
    if last is None:
        raise RunError(
            "the run has no checkpoint yet",
            where=str(run.checkpoints),
            hint=f"wait for its first save (trainer.save_every), or resume it: {shell.resume_command(run.path)}",
        )
    if chosen == "last":
        if damaged:
            raise damaged[0]
        return last
    best = last.best_step
    if damaged and best != last.step:
        # The damaged newer checkpoint may have been the best.
        raise damaged[0]
    return checkpoint_files.at_step(run.checkpoints, best) if best else last
