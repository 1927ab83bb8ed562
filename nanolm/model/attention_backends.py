"""Ways to compute one and the same attention: each exact, each fast somewhere.

A path is a function of a `Scene` (who sees whom) that returns a function of queries, keys and values. The scene is
looked at once in a forward pass, whatever the number of layers that share it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from nanolm.config.mask import BandedCausalConfig, BandedConfig, BlockLocalConfig, MaskConfig, layers_by_mask
from nanolm.config.model import AttentionKind, TransformerConfig
from nanolm.config.run import Config
from nanolm.config.trainer import AttentionBackend
from nanolm.errors import SettingsError
from nanolm.model.masks import same_document
from nanolm.registry import MASKS

# Queries BxHxQxK, keys BxHxTxK, values BxHxTxV and the dropout of the weights to what was gathered, BxHxQxV.
AttentionFn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]

# A block of queries is at least so many, whatever the window: smaller products waste the processor.
SMALLEST_BLOCK = 32

# Measured on a CPU (`make bench`): blocks serve a query better when all keys are so many times those it meets there.
WORTH_BLOCKING = 2


@dataclasses.dataclass(frozen=True)
class AttentionContext:
    """Who sees whom in one layer.

    Attributes:
        mask: its settings.
        table_TxT: the mask as a table over the whole context, on the device; None for a causal one.
        start: position of the first query; there are keys from 0 on.
        length: keys, and where the queries end.
        slopes_H: of ALiBi, where the model has it.
        documents_BxT: the document of each key, where the mask stays within documents.
        device: where all of it is.
    """

    mask: MaskConfig
    table_TxT: torch.Tensor | None  # noqa: N815  its shape is in its name
    start: int
    length: int
    slopes_H: torch.Tensor | None  # noqa: N815
    documents_BxT: torch.Tensor | None  # noqa: N815
    device: torch.device

    @property
    def is_plain_causal(self) -> bool:
        """Whether every query sees itself and all before it, and nothing else bears on the scores."""
        return self.table_TxT is None and self.start == 0 and self.slopes_H is None and self.documents_BxT is None

    def visible(self) -> torch.Tensor:
        """QxK, or Bx1xQxK where documents differ: whether query q sees key k."""
        if self.table_TxT is not None:
            visible_QxK = self.table_TxT[self.start : self.length, : self.length]
        else:
            positions = torch.arange(self.length, device=self.device)
            visible_QxK = positions[self.start :, None] >= positions
        if self.documents_BxT is None:
            return visible_QxK
        same_BxQxK = same_document(self.documents_BxT)[:, self.start :]
        return visible_QxK & same_BxQxK[:, None]

    def falling(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor | None:
        """What ALiBi adds to the scores of these positions, a head first; None without it."""
        if self.slopes_H is None:
            return None
        distance = (queries - keys).abs()
        return -self.slopes_H.view(-1, *[1] * distance.dim()) * distance


def dense(scene: AttentionContext) -> AttentionFn:
    """The reference: the formula as it stands, over a table of all scores (Vaswani et al. 2017, section 3.2.1)."""
    visible, falling = _table(scene)

    def gather(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
        return _weighted(q, k, v, visible, falling, dropout)

    return gather


def sdpa(scene: AttentionContext) -> AttentionFn:
    """PyTorch's fused kernels, which know a causal mask and take any other as a table."""
    if scene.is_plain_causal:
        return lambda q, k, v, dropout: F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    visible, falling = _table(scene)
    added = visible if falling is None else falling.masked_fill(~visible, -torch.inf)

    def gather(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
        mask = added if added.dtype is torch.bool else added.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)

    return gather


def blocked(scene: AttentionContext) -> AttentionFn:
    """For masks that see near by only: a block of queries meets its own keys and those of the blocks beside it.

    Time and memory grow with T x window instead of T x T (compare Beltagy et al. 2020, Longformer, section 3.2).
    """
    reach = local_reach(scene.mask)
    assert reach is not None, f"{scene.mask.name} is not local"
    assert scene.start == 0, "blocks of queries begin at the first position"
    block, before, after = reach
    length = scene.length
    n_blocks = -(-length // block)
    filling = n_blocks * block - length
    queries = torch.arange(n_blocks * block, device=scene.device).view(n_blocks, block, 1)
    keys = queries.view(n_blocks, 1, block)[:, :, :1] + torch.arange(
        -before * block, (1 + after) * block, device=scene.device
    )
    visible = MASKS[scene.mask.name](queries, keys, scene.mask) & (keys >= 0) & (keys < length)
    if scene.documents_BxT is not None:
        blocks_Bx1xNxbx1 = _in_blocks(F.pad(scene.documents_BxT, (0, filling))[:, None, :, None], block)
        near_Bx1xNxkx1 = _beside(blocks_Bx1xNxbx1, before, after)
        visible = visible & (blocks_Bx1xNxbx1 == near_Bx1xNxkx1.transpose(-2, -1))
    # Queries that fill up the last block see something, so that no softmax is without a value; they are cut off.
    visible = visible | (queries >= length)
    falling = scene.falling(queries, keys)

    def gather(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
        q, k, v = (_in_blocks(F.pad(x, (0, 0, 0, filling)) if filling else x, block) for x in (q, k, v))
        gathered = _weighted(q, _beside(k, before, after), _beside(v, before, after), visible, falling, dropout)
        return gathered.flatten(2, 3)[:, :, :length]

    return gather


def flex(scene: AttentionContext) -> AttentionFn:
    """FlexAttention (Dong et al. 2024): a kernel compiled for the mask, which skips blocks that the mask hides.

    It has no backward pass on a CPU, and no dropout. It serves whole contexts; `choose` leaves decoding to SDPA.
    """
    assert scene.start == 0, "FlexAttention serves whole contexts"
    documents_BxT, slopes_H = scene.documents_BxT, scene.slopes_H
    if documents_BxT is None:
        block_mask = _cached_block_mask(_Key(scene.mask), scene.length, scene.device)
    else:
        block_mask = _block_mask(scene.mask, scene.length, scene.device, documents_BxT)

    def alibi(
        score: torch.Tensor, batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        assert slopes_H is not None
        return score - slopes_H[head] * (query - key).abs()

    def gather(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
        assert not dropout, "flex attention has no dropout"
        use = (documents_BxT is not None, slopes_H is not None, torch.is_grad_enabled())
        kernel = _flex_kernel(_Key(scene.mask), use) if scene.device.type == "cuda" else _flex_attention()
        # Under autocast QK-norm returns fp32; the kernel takes one dtype.
        q, k = q.to(v.dtype), k.to(v.dtype)
        return kernel(q, k, v, score_mod=None if slopes_H is None else alibi, block_mask=block_mask)

    return gather


@dataclasses.dataclass(frozen=True)
class _Key:
    """A mask's settings as a key of a cache: masks with equal settings are one."""

    mask: MaskConfig

    def __hash__(self) -> int:
        return hash(repr(self.mask))


@functools.lru_cache(maxsize=32)
def _cached_block_mask(key: _Key, length: int, device: torch.device) -> Any:
    return _block_mask(key.mask, length, device, None)


def _block_mask(mask: MaskConfig, length: int, device: torch.device, documents_BxT: torch.Tensor | None) -> Any:
    """FlexAttention's BlockMask of a mask over a whole context."""
    from torch.nn.attention.flex_attention import create_block_mask

    mask_function = MASKS[mask.name]

    def is_visible(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        visible = mask_function(query, key, mask)
        if documents_BxT is None:
            return visible
        return visible & (documents_BxT[batch, query] == documents_BxT[batch, key])

    n_rows = None if documents_BxT is None else documents_BxT.size(0)
    return create_block_mask(is_visible, B=n_rows, H=None, Q_LEN=length, KV_LEN=length, device=device)


@functools.lru_cache(maxsize=64)
def _flex_kernel(key: _Key, use: tuple[bool, ...]) -> Callable[..., Any]:
    """Compile FlexAttention for one mask and one kind of use (documents, ALiBi, with or without gradients).

    One callable for all of them would exceed torch's limit of recompilations, behind which the kernel is not fused.
    """
    options: dict[str, Any] = {"dynamic": False}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # torch 2.13
        options["isolate_recompiles"] = True
    else:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(_flex_attention(), **options)


def _flex_attention() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


def uniform(scene: AttentionContext) -> AttentionFn:
    """The plain mean of the values that are seen; queries and keys are not looked at."""
    visible = scene.visible()
    weights = visible / visible.sum(dim=-1, keepdim=True)

    def gather(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
        return F.dropout(weights, dropout, training=dropout > 0).to(v.dtype) @ v

    return gather


BACKENDS: dict[AttentionBackend, Callable[[AttentionContext], AttentionFn]] = {
    AttentionBackend.dense: dense,
    AttentionBackend.sdpa: sdpa,
    AttentionBackend.blocked: blocked,
    AttentionBackend.flex: flex,
}


def choose_backend(
    mask: MaskConfig,
    length: int,
    asked: AttentionBackend,
    *,
    start: int = 0,
    has_cache: bool = False,
    device_type: str = "cpu",
) -> AttentionBackend:
    """The attention backend for a mask and a length.

    It is a rule and not a measurement at start-up, so that a resumed run computes as before.

    Args:
        mask: settings of the layer's mask.
        length: number of keys.
        asked: trainer.attention_backend.
        start: position of the first query; past 0 there are few queries, which need no blocks.
        has_cache: whether text is being generated with a cache of keys and values, whose lengths vary from call to
            call: FlexAttention would compile a kernel for each.
        device_type: of the model. `auto` takes blocks only where they were measured to be faster, on a CPU; on a GPU
            they keep several times the memory of a fused kernel.
    """
    if (start and asked in (AttentionBackend.blocked, AttentionBackend.auto)) or (
        has_cache and asked is AttentionBackend.flex
    ):
        return AttentionBackend.sdpa
    if asked is not AttentionBackend.auto:
        return asked
    reach = local_reach(mask)
    if reach is not None and device_type == "cpu":
        block, before, after = reach
        if length >= WORTH_BLOCKING * block * (1 + before + after):
            return AttentionBackend.blocked
    return AttentionBackend.sdpa


def describe_backends(config: Config, device_type: str = "cpu") -> str | None:
    """The attention backend of each layer at the full context; None for a model without attention."""
    model, length = config.model, config.size.context_length
    if not isinstance(model, TransformerConfig) or not config.size.n_layers:
        return None
    if model.attention is AttentionKind.uniform:
        return "attention is the plain mean"
    asked = config.trainer.attention_backend
    by_path: dict[str, list[str]] = {}
    for mask, _ in layers_by_mask(config):
        by_path.setdefault(choose_backend(mask, length, asked, device_type=device_type).name, []).append(mask.name)
    if len(by_path) == 1:
        return f"attention by {next(iter(by_path))}"
    return "attention by " + ", ".join(f"{path} ({', '.join(names)})" for path, names in by_path.items())


def require_device(path: AttentionBackend, device: torch.device) -> None:
    """Refuses to train by a path that has no backward pass on this device.

    Raises:
        SettingsError: flex on anything but a GPU.
    """
    if path is AttentionBackend.flex and device.type != "cuda":
        raise SettingsError(
            f"trainer.attention_backend flex has no backward pass on {device.type}",
            where="trainer.attention_backend, trainer.device",
            hint="another path, or a GPU",
        )


def local_reach(mask: MaskConfig) -> tuple[int, int, int] | None:
    """For a mask that sees near by only: the size of a block, and how many blocks before and after it are seen."""
    if isinstance(mask, BlockLocalConfig):
        return mask.block_size, 0, 0
    if isinstance(mask, BandedCausalConfig):
        return max(mask.window, SMALLEST_BLOCK), 1, 0
    if isinstance(mask, BandedConfig):
        return max(mask.window, SMALLEST_BLOCK), 1, 1
    return None


def _table(scene: AttentionContext) -> tuple[torch.Tensor, torch.Tensor | None]:
    positions = torch.arange(scene.length, device=scene.device)
    return scene.visible(), scene.falling(positions[scene.start :, None], positions)


def _weighted(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    falling: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d_key) + falling) v over what is visible."""
    scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(q.size(-1)))
    if falling is not None:
        scores = scores + falling
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    return F.dropout(weights, dropout, training=dropout > 0).to(v.dtype) @ v


def _in_blocks(x_BxHxTxD: torch.Tensor, block: int) -> torch.Tensor:
    """BxHxNxbxD."""
    return x_BxHxTxD.unflatten(2, (-1, block))


def _beside(x_BxHxNxbxD: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """Each block between so many of its neighbours, BxHxNxkxD with k = (before + 1 + after) b; zeros at the ends."""
    if not before and not after:
        return x_BxHxNxbxD
    n_blocks = x_BxHxNxbxD.size(2)
    padded = F.pad(x_BxHxNxbxD, (0, 0, 0, 0, before, after))
    return torch.cat([padded[:, :, shift : shift + n_blocks] for shift in range(before + 1 + after)], dim=3)
