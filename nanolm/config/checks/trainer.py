"""Check the settings of the training loop."""

from __future__ import annotations

from collections.abc import Iterator

from nanolm.config.optimizer import ScheduleFreeConfig
from nanolm.config.run import Config
from nanolm.errors import NanolmError, SettingsError
from nanolm.torchrun import world_size


def check_trainer(config: Config) -> Iterator[NanolmError]:
    """Find batches that cannot be split evenly, two ways of clipping, and two averages of the weights."""
    trainer, n_processes = config.trainer, world_size()
    share = trainer.batch_size // n_processes
    if trainer.batch_size % n_processes:
        yield SettingsError(
            f"trainer.batch_size ({trainer.batch_size}) is not divisible by the {n_processes} processes",
            where="trainer.batch_size",
            hint="batch_size counts the sequences of all processes together; "
            f"use a multiple of {n_processes}, such as {(share + 1) * n_processes}",
        )
    elif share % trainer.gradient_accumulation:
        per_process = f" / {n_processes} processes = {share}" if n_processes > 1 else ""
        yield SettingsError(
            f"trainer.batch_size ({trainer.batch_size}{per_process}) is not divisible by "
            f"trainer.gradient_accumulation ({trainer.gradient_accumulation})",
            where="trainer.batch_size, trainer.gradient_accumulation",
            hint="batch_size counts all sequences of an optimizer step; gradient_accumulation must divide "
            + ("it" if n_processes == 1 else "the share of each process"),
        )
    if trainer.clip_norm is not None and trainer.clip_value is not None:
        yield SettingsError(
            f"trainer.clip_norm ({trainer.clip_norm}) and trainer.clip_value ({trainer.clip_value}) are both set",
            where="trainer.clip_norm, trainer.clip_value",
            hint="use one of them: trainer.clip_norm=null clips by value",
        )
    if trainer.ema_decay is not None and isinstance(config.optimizer, ScheduleFreeConfig):
        yield SettingsError(
            "optimizer=schedule_free averages the weights itself, and trainer.ema_decay would average them again",
            where="trainer.ema_decay, optimizer",
            hint="use trainer.ema_decay=null, or another optimizer",
        )
