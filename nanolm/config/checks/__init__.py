"""Check the settings of a run before its data is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from nanolm.config.batch_schedule import check_schedules
from nanolm.config.budget import check_budget
from nanolm.config.checks.dataset import check_dataset
from nanolm.config.checks.lora import check_lora
from nanolm.config.checks.mask import check_mask
from nanolm.config.checks.model import check_model
from nanolm.config.checks.scheduler import check_scheduler
from nanolm.config.checks.trainer import (
    check_attention_backend,
    check_compile,
    check_device,
    check_processes,
    check_trainer,
)
from nanolm.config.fields import leaves, outside_bounds
from nanolm.config.lr_scaling import check_lr_scaling
from nanolm.config.run import Config
from nanolm.config.wandb_environment import check_logger
from nanolm.config.wrong_values import LISTS
from nanolm.errors import NanolmError, SettingsError
from nanolm.registry import GROUPS

Check = Callable[[Config], Iterator[NanolmError]]

CHECKS: tuple[Check, ...] = (
    check_budget,
    check_dataset,
    check_model,
    check_lora,
    check_mask,
    check_attention_backend,
    check_trainer,
    check_processes,
    check_scheduler,
    check_lr_scaling,
    check_device,
    check_compile,
    check_logger,
)
MODEL_CHECKS = (check_model, check_lora, check_mask)


def check(config: Config, checks: Iterable[Check] = CHECKS) -> list[NanolmError]:
    """Return all mistakes in the settings that can be found without the data.

    The checks across settings run only if every setting is valid by itself.

    Args:
        config: settings.
        checks: those across settings: all, or MODEL_CHECKS for a model that is not trained further.
    """
    problems: list[NanolmError] = [*_check_names(config), *_check_items(config), *outside_bounds(config)]
    problems += check_schedules(config.trainer, config.size)
    return problems or [problem for check_group in checks for problem in check_group(config)]


def _check_names(config: Config) -> Iterator[NanolmError]:
    """Refuse a group with the name of one option and the settings of another, which optimizer.name=lion results in."""
    for group, registry in GROUPS.items():
        node = getattr(config, group)
        schema = registry.schemas.get(node.name)
        if schema is not None and type(node) is not schema:
            missing = [field.name for field in dataclasses.fields(schema) if not hasattr(node, field.name)]
            yield SettingsError(
                f"{group}.name is {node.name}, but the settings are not those of {node.name}"
                + (f": {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing" if missing else ""),
                where=f"{group}.name",
                hint=f"choose an option with {group}=NAME, or in the defaults list of your own YAML file",
            )


def _check_items(config: Config) -> Iterator[NanolmError]:
    """Refuse lists and mappings as items of lists of strings or numbers, which OmegaConf accepts."""
    for key, field, value in leaves(config):
        wanted = next((text for kind, text in LISTS.items() if f"list[{kind.__name__}]" in str(field.type)), None)
        if wanted and isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
            yield SettingsError(f"{key} is {value}, and must be {wanted}", where=key)
