from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nanolm.config.mask import (
    LOCAL_MASKS,
    BandedCausalConfig,
    BandedConfig,
    BlockLocalConfig,
    CausalConfig,
    MaskConfig,
    NoMaskConfig,
    PatternConfig,
    PrefixConfig,
    StridedConfig,
)
from nanolm.config.trainer import AttentionBackend
from nanolm.model import attention_backends, masks
from nanolm.model.attention_backends import (
    BACKENDS,
    AttentionContext,
    local_neighborhood,
    uniform,
)
from nanolm.model.positions import alibi_slopes
from nanolm.registry import MASKS as REGISTERED
from tests.helpers import mostly_slow

MASKS = [
    CausalConfig(),
    NoMaskConfig(),
    BandedConfig(window=1),
    BandedConfig(window=40),
    BandedCausalConfig(window=3),
    BandedCausalConfig(window=33),
    BandedCausalConfig(window=64),
    PrefixConfig(prefix_length=5),
    StridedConfig(stride=3),
    BlockLocalConfig(block_size=7),
    BlockLocalConfig(block_size=40),
]
# 1, odd lengths, multiples of the block size and multiples plus 1.
LENGTHS = [1, 5, 64, 65, 131]

EXACT = [(AttentionBackend.sdpa, mask) for mask in MASKS]
EXACT += [(AttentionBackend.blocked, mask) for mask in MASKS if local_neighborhood(mask) is not None]


def make_context(
    mask: MaskConfig, length: int, slopes: bool = False, documents: torch.Tensor | None = None
) -> AttentionContext:
    table = None if isinstance(mask, CausalConfig) else masks.dense_mask(mask, length)
    slopes_H = alibi_slopes(3) if slopes else None
    return AttentionContext(mask, lambda: table, 0, length, slopes_H, documents, torch.device("cpu"))


def inputs(length: int, device: str = "cpu", requires_grad: bool = True) -> list[torch.Tensor]:
    torch.manual_seed(0)
    widths = (10, 10, 6)  # queries, keys, values
    return [torch.randn(2, 3, length, width, device=device, requires_grad=requires_grad) for width in widths]


def document_numbers(length: int) -> torch.Tensor:
    """Return document numbers of two rows whose documents have different lengths."""
    positions = torch.arange(length)
    return torch.stack([positions // 9, (positions + 4) // 23])


@pytest.mark.parametrize("with_documents", [False, True], ids=["text", "documents"])
@pytest.mark.parametrize("slopes", [False, True], ids=["plain", "alibi"])
@pytest.mark.parametrize(("backend", "mask"), EXACT, ids=lambda value: getattr(value, "name", None))
def test_backend_equals_dense(backend: AttentionBackend, mask: MaskConfig, slopes: bool, with_documents: bool) -> None:
    for length in LENGTHS:
        documents = document_numbers(length) if with_documents else None
        results = []
        for name in (AttentionBackend.dense, backend):
            qkv = inputs(length)
            y = BACKENDS[name](make_context(mask, length, slopes, documents))(*qkv, 0.0)
            (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
            results.append([y, *(x.grad for x in qkv)])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("mask", mostly_slow(MASKS, quick=[MASKS[0], MASKS[5]]), ids=masks.describe_mask)
def test_flex_forward_equals_dense(mask: MaskConfig) -> None:
    for slopes, documents in ((False, None), (True, document_numbers(131))):
        context = make_context(mask, 131, slopes, documents)
        # On a CPU it supports only equal widths that are powers of two.
        qkv = [x[..., :1].expand(-1, -1, -1, 16).clone() for x in inputs(131, requires_grad=False)]
        with torch.no_grad():
            expected, found = (
                BACKENDS[name](context)(*qkv, 0.0) for name in (AttentionBackend.dense, AttentionBackend.flex)
            )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("backend", "mask"), [*EXACT, *((AttentionBackend.flex, mask) for mask in MASKS)])
def test_backend_equals_dense_on_a_gpu(backend: AttentionBackend, mask: MaskConfig) -> None:
    torch._dynamo.reset()  # kernels of earlier cases count towards torch's recompilation limit
    device = torch.device("cuda")
    for length in (128, 131):
        table = None if isinstance(mask, CausalConfig) else masks.dense_mask(mask, length).to(device)
        context = AttentionContext(mask, lambda table=table: table, 0, length, None, None, device)
        results = []
        for name in (AttentionBackend.dense, backend):
            torch.manual_seed(0)
            qkv = [torch.randn(2, 3, length, 32, device=device, requires_grad=True) for _ in range(3)]
            y = BACKENDS[name](context)(*qkv, 0.0)
            y.square().sum().backward()
            results.append([y, *(x.grad for x in qkv)])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", [AttentionBackend.dense, AttentionBackend.sdpa, AttentionBackend.blocked])
def test_dropout_preserves_the_mean(backend: AttentionBackend) -> None:
    context = make_context(BandedCausalConfig(window=8), 40)
    qkv = [x.detach()[:1].expand(2000, -1, -1, -1) for x in inputs(40)]
    dropped = BACKENDS[backend](context)(*qkv, 0.5)
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(0), BACKENDS[backend](context)(*qkv, 0.0)[0], atol=0.15, rtol=0.1)


def test_uniform_attention_equals_other_causal_averages() -> None:
    x_TxC = torch.randn(9, 4)
    loop = torch.stack([x_TxC[: t + 1].mean(dim=0) for t in range(9)])
    tril = torch.ones(9, 9).tril()
    matrix = (tril / tril.sum(dim=1, keepdim=True)) @ x_TxC
    softmax = F.softmax(torch.zeros(9, 9).masked_fill(tril == 0, -torch.inf), dim=-1) @ x_TxC
    ours = uniform(make_context(CausalConfig(), 9))(x_TxC, x_TxC, x_TxC, 0.0)
    for other in (matrix, softmax, ours):
        torch.testing.assert_close(other, loop)


@pytest.mark.parametrize("mask", MASKS, ids=masks.describe_mask)
def test_uniform_attention_averages_visible_positions(mask: MaskConfig) -> None:
    x_TxC = torch.randn(12, 4)
    expected = torch.stack([x_TxC[row].mean(dim=0) for row in masks.dense_mask(mask, 12)])
    torch.testing.assert_close(uniform(make_context(mask, 12))(x_TxC, x_TxC, x_TxC, 0.0), expected)


def test_local_neighborhood_exists_for_the_local_masks_of_config() -> None:
    for name, schema in REGISTERED.schemas.items():
        if name != PatternConfig.name:
            assert (local_neighborhood(schema()) is not None) == issubclass(schema, LOCAL_MASKS), name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_caches_block_masks_of_equal_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import flex_attention

    made = []
    create = flex_attention.create_block_mask
    monkeypatch.setattr(
        flex_attention, "create_block_mask", lambda *a, **k: made.append(k["device"]) or create(*a, **k)
    )
    attention_backends._cached_block_mask.cache_clear()
    qkv = [x[..., :1].expand(-1, -1, -1, 16).clone() for x in inputs(40, requires_grad=False)]
    for mask in (StridedConfig(stride=3), StridedConfig(stride=3), StridedConfig(stride=4)):
        BACKENDS[AttentionBackend.flex](make_context(mask, 40))(*qkv, 0.0)
    assert made == [torch.device("cpu")] * 2, "on the device of the inputs"


def test_flex_compiles_one_kernel_per_mask_and_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def record_compile(
        function: Callable[..., Any], dynamic: bool | None = None, isolate_recompiles: bool = False
    ) -> Callable[..., Any]:
        compiled.append((dynamic, isolate_recompiles))
        return lambda *arguments, **keywords: len(compiled)

    monkeypatch.setattr(torch, "compile", record_compile)
    attention_backends._flex_kernel.cache_clear()
    plain = (False, False, True)
    kernels = [
        attention_backends._flex_kernel(attention_backends._MaskKey(mask), variant)
        for mask, variant in (
            (StridedConfig(stride=3), plain),
            (StridedConfig(stride=3), plain),
            (StridedConfig(stride=4), plain),
            (StridedConfig(stride=3), (False, False, False)),
        )
    ]
    attention_backends._flex_kernel.cache_clear()
    assert kernels[0] is kernels[1]
    assert len({id(kernel) for kernel in kernels}) == 3
    assert compiled == [(False, True)] * 3
