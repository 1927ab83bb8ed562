"""The number of parameters of any model: by formula, or by building it without memory."""

from __future__ import annotations

from collections import Counter

from nanolm.config.run import Config
from nanolm.errors import NanolmError, SettingsError
from nanolm.model import count
from nanolm.model.count import Part
from nanolm.model.shapes import has_formula


def n_parameters(config: Config, vocab_size: int) -> int:
    """Return the number of parameters of a model, trained or not.

    Raises:
        SettingsError: as `parameter_parts`.
    """
    return count.total(parameter_parts(config, vocab_size))


def parameter_parts(config: Config, vocab_size: int) -> list[Part]:
    """Count the parameters of each part of a model; those of a plugin's model by submodule.

    Raises:
        SettingsError: a plugin's model cannot be built, or is a table whose size depends on its text.
    """
    return count.parameters(config, vocab_size) if has_formula(config) else _built_parts(config, vocab_size)


def _built_parts(config: Config, vocab_size: int) -> list[Part]:
    """Count the parameters of a plugin's model, by submodule, by building it on the meta device."""
    import torch

    from nanolm.model.build import FittedModel, build

    try:
        with torch.device("meta"):
            model = build(config, vocab_size)
        if isinstance(model, FittedModel):
            raise no_size(config)
        sizes: Counter[str] = Counter()
        for name, parameter in model.named_parameters():
            sizes[name.split(".")[0]] += parameter.numel()
    except NanolmError:
        raise
    except Exception as error:
        raise SettingsError(
            f"the model {config.model.name!r} has no formula, and cannot be built on the meta device: "
            f"{type(error).__name__}: {error}",
            where="model",
            hint='nanolm builds it under torch.device("meta"), where tensors have shapes but no values',
        ) from error
    return [Part(name, "built", amount) for name, amount in sizes.items()]


def no_size(config: Config) -> SettingsError:
    """Return the error for a model that is fitted."""
    return SettingsError(
        f"the model {config.model.name!r} is a table whose size depends on its text",
        where="model",
        hint=f"run `nanolm train model={config.model.name}`; its summary.json has the number of entries",
    )
