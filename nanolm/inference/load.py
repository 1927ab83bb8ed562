"""A run directory opened for use: its settings, tokenizer and weights, nothing in it executed."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from nanolm import option_types, shell
from nanolm.compose import import_plugins
from nanolm.config.run import Config
from nanolm.config.trainer import AttentionBackend
from nanolm.config.yaml_io import load_yaml
from nanolm.data import tokenizers
from nanolm.data.tokenizers import Tokenizer
from nanolm.errors import RunError, SettingsError
from nanolm.model.build import build
from nanolm.runs.directory import RunDirectory
from nanolm.training import ema, memory
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.resume_checks import LOADED, require_same_settings
from nanolm.training.precision import choose_device


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A run's model, ready to use."""

    run: RunDirectory
    config: Config
    tokenizer: Tokenizer
    model: nn.Module
    step: int
    device: torch.device


# Which of a checkpoint's weights: as they were trained, or their moving average (trainer.ema_decay).
WEIGHTS = ("trained", "ema")


def load_run(
    path: str,
    which: str = "best",
    device: str = "auto",
    plugins: list[str] | None = None,
    weights: str = "trained",
) -> Loaded:
    """Opens a run directory. Nothing in it is executed: modules of the user's own must be named here again.

    Args:
        path: the run directory.
        which: "best" (lowest validation loss), "last", or a step.
        device: as trainer.device.
        plugins: modules that register what the run was made with.
        weights: one of WEIGHTS.

    Raises:
        RunError: this is no run, it has no checkpoint yet, or it averages no weights.
        CheckpointError: the checkpoint is damaged.
    """
    run = RunDirectory(path).require()
    chosen = choose_device(device, where="--device")
    import_plugins(plugins or [])
    config = load_yaml(run.config)
    # A path of attention is the choice of the machine that trained.
    config.trainer.attention_backend = AttentionBackend.auto
    tokenizer = tokenizers.from_file(run.tokenizer)
    found = _find(run, which)
    require_same_settings(config, run, found.manifest, found.path, LOADED)
    with memory.translate_memory_errors(config):
        model = build(config, tokenizer.vocab_size)
        found.load_weights(model)
        model.requires_grad_(False).to(chosen).eval()
    if weights == "ema":
        ema.copy_(_averages(found), model)
    return Loaded(run, config, tokenizer, model, found.step, chosen)


def _averages(found: checkpoint.Checkpoint) -> ema.Averages:
    averages = found.load_averages()
    if averages is None:
        raise RunError(
            "the run keeps no average of its weights",
            where=f"--weights ema, {found.path}",
            hint="leave --weights out; a run keeps one with trainer.ema_decay=0.999",
        )
    return averages


def _find(run: RunDirectory, which: str) -> checkpoint.Checkpoint:
    try:
        which = option_types.checkpoint(which)
    except SettingsError as error:
        raise SettingsError(f"--checkpoint {error.found}", where="--checkpoint", hint=error.hint) from error
    if which not in ("best", "last"):
        return checkpoint.at_step(run.checkpoints, int(which))
    last, damaged = checkpoint.newest(run.checkpoints)
    if last is None:
        raise RunError(
            "the run has no checkpoint yet",
            where=str(run.checkpoints),
            hint=f"wait for its first save (trainer.save_every), or go on with it: {shell.resume_command(run.path)}",
        )
    if which == "last":
        if damaged:
            raise damaged[0]
        return last
    best = last.best_step
    if damaged and best != last.step:
        # A newer checkpoint that cannot be read may have been the best: say so instead of guessing.
        raise damaged[0]
    return checkpoint.at_step(run.checkpoints, best) if best else last
