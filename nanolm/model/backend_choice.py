"""The choice of an attention backend for each layer."""

from __future__ import annotations

import torch

from nanolm.config.mask import MaskConfig, layers_by_mask
from nanolm.config.model import AttentionKind, TransformerConfig
from nanolm.config.run import Config
from nanolm.config.trainer import AttentionBackend
from nanolm.errors import SettingsError
from nanolm.model.attention_backends import local_neighborhood

# Measured on a CPU (`make bench`): blocked attention is faster if T is at least this multiple of the keys per block.
MIN_BLOCKED_RATIO = 2


def choose_backend(
    mask: MaskConfig,
    length: int,
    backend: AttentionBackend,
    *,
    start: int = 0,
    has_cache: bool = False,
    device_type: str = "cpu",
) -> AttentionBackend:
    """Choose the backend of a forward pass by a fixed rule, so that a resumed run computes as before.

    The backends are not timed when a run starts: the result could differ between two sessions of a run.

    Args:
        mask: settings of the layer's mask.
        length: number of keys.
        backend: trainer.attention_backend.
        start: position of the first query. After position 0 there are few queries, and blocks do not help.
        has_cache: whether text is generated with a key-value cache. Its length varies from call to call, and
            FlexAttention would compile a kernel for each length.
        device_type: of the model. `auto` chooses blocked attention on a CPU only, where it was measured to be faster;
            on a GPU it needs several times the memory of a fused kernel.
    """
    if start and backend in (AttentionBackend.blocked, AttentionBackend.auto):
        return AttentionBackend.sdpa
    if has_cache and backend is AttentionBackend.flex:
        return AttentionBackend.sdpa
    if backend is not AttentionBackend.auto:
        return backend
    neighborhood = local_neighborhood(mask)
    if neighborhood is not None and device_type == "cpu":
        block_size, n_before, n_after = neighborhood
        if length >= MIN_BLOCKED_RATIO * block_size * (1 + n_before + n_after):
            return AttentionBackend.blocked
    return AttentionBackend.sdpa


def describe_backends(config: Config, device_type: str = "cpu") -> str | None:
    """Describe the backend of each mask at the full context length; None for a model without attention."""
    model, length = config.model, config.size.context_length
    if not isinstance(model, TransformerConfig) or not config.size.n_layers:
        return None
    if model.attention is AttentionKind.uniform:
        return "uniform attention"
    masks_by_backend: dict[str, list[str]] = {}
    for mask, _ in layers_by_mask(config):
        backend = choose_backend(mask, length, config.trainer.attention_backend, device_type=device_type)
        masks_by_backend.setdefault(backend.name, []).append(mask.name)
    if len(masks_by_backend) == 1:
        return f"{next(iter(masks_by_backend))} attention"
    return "attention: " + ", ".join(f"{name} ({', '.join(masks)})" for name, masks in masks_by_backend.items())


def require_device(backend: AttentionBackend, device: torch.device) -> None:
    """Check that a backend can train on a device.

    Raises:
        SettingsError: flex on a device other than a GPU, where it has no backward pass.
    """
    if backend is AttentionBackend.flex and device.type != "cuda":
        raise SettingsError(
            f"trainer.attention_backend=flex has no backward pass on {device.type}",
            where="trainer.attention_backend, trainer.device",
            hint="choose another backend, or a GPU",
        )
