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
from nanolm.errors import SettingsError
from nanolm.model import attention_backends, masks
from nanolm.model.attention_backends import (
    BACKENDS,
    AttentionContext,
    choose_backend,
    describe_backends,
    local_reach,
    require_device,
    uniform,
)
from nanolm.model.positions import alibi_slopes
from nanolm.registry import MASKS as REGISTERED
from tests.helpers import make_config

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
# 1, odd lengths, lengths that fill blocks and lengths that leave one position over.
LENGTHS = [1, 5, 64, 65, 131]

EXACT = [(AttentionBackend.sdpa, mask) for mask in MASKS]
EXACT += [(AttentionBackend.blocked, mask) for mask in MASKS if local_reach(mask) is not None]


def named(mask: MaskConfig) -> str:
    return masks.describe_mask(mask)


def scene(
    mask: MaskConfig, length: int, slopes: bool = False, documents: torch.Tensor | None = None
) -> AttentionContext:
    table = None if isinstance(mask, CausalConfig) else masks.dense_mask(mask, length)
    return AttentionContext(mask, table, 0, length, alibi_slopes(3) if slopes else None, documents, torch.device("cpu"))


def inputs(length: int, device: str = "cpu", requires_grad: bool = True) -> list[torch.Tensor]:
    torch.manual_seed(0)
    widths = (10, 10, 6)  # keys and values of different widths
    return [torch.randn(2, 3, length, width, device=device, requires_grad=requires_grad) for width in widths]


def documents_of(length: int) -> torch.Tensor:
    """Two rows of documents that begin at different places."""
    positions = torch.arange(length)
    return torch.stack([positions // 9, (positions + 4) // 23])


@pytest.mark.parametrize("with_documents", [False, True], ids=["text", "documents"])
@pytest.mark.parametrize("slopes", [False, True], ids=["plain", "alibi"])
@pytest.mark.parametrize(("path", "mask"), EXACT, ids=lambda value: getattr(value, "name", None))
def test_every_path_is_the_reference(
    path: AttentionBackend, mask: MaskConfig, slopes: bool, with_documents: bool
) -> None:
    for length in LENGTHS:
        documents = documents_of(length) if with_documents else None
        results = []
        for chosen in (AttentionBackend.dense, path):
            qkv = inputs(length)
            gathered = BACKENDS[chosen](scene(mask, length, slopes, documents))(*qkv, 0.0)
            (gathered * torch.linspace(-1, 1, gathered.numel()).view_as(gathered)).sum().backward()
            results.append([gathered, *(x.grad for x in qkv)])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("mask", MASKS, ids=named)
def test_flex_is_the_reference_forward(mask: MaskConfig) -> None:
    for slopes, documents in ((False, None), (True, documents_of(131))):
        seen = scene(mask, 131, slopes, documents)
        # Keys and values as wide as each other, in a power of two: its kernels on a CPU know no others.
        qkv = [x[..., :1].expand(-1, -1, -1, 16).clone() for x in inputs(131, requires_grad=False)]
        with torch.no_grad():
            expected, found = (
                BACKENDS[path](seen)(*qkv, 0.0) for path in (AttentionBackend.dense, AttentionBackend.flex)
            )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("path", "mask"), [*EXACT, *((AttentionBackend.flex, mask) for mask in MASKS)])
def test_every_path_is_the_reference_on_a_gpu(path: AttentionBackend, mask: MaskConfig) -> None:
    torch._dynamo.reset()  # kernels of earlier cases count towards torch's limit of recompilations
    device = torch.device("cuda")
    for length in (128, 131):
        table = None if isinstance(mask, CausalConfig) else masks.dense_mask(mask, length).to(device)
        results = []
        for chosen in (AttentionBackend.dense, path):
            torch.manual_seed(0)
            qkv = [torch.randn(2, 3, length, 32, device=device, requires_grad=True) for _ in range(3)]
            gathered = BACKENDS[chosen](AttentionContext(mask, table, 0, length, None, None, device))(*qkv, 0.0)
            gathered.square().sum().backward()
            results.append([gathered, *(x.grad for x in qkv)])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("path", [AttentionBackend.dense, AttentionBackend.sdpa, AttentionBackend.blocked])
def test_dropout_keeps_the_mean(path: AttentionBackend) -> None:
    seen = scene(BandedCausalConfig(window=8), 40)
    qkv = [x.detach()[:1].expand(2000, -1, -1, -1) for x in inputs(40)]
    dropped = BACKENDS[path](seen)(*qkv, 0.5)
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(0), BACKENDS[path](seen)(*qkv, 0.0)[0], atol=0.15, rtol=0.1)


def test_the_three_ways_of_averaging_agree() -> None:
    x_TxC = torch.randn(9, 4)
    loop = torch.stack([x_TxC[: t + 1].mean(dim=0) for t in range(9)])
    tril = torch.ones(9, 9).tril()
    matrix = (tril / tril.sum(dim=1, keepdim=True)) @ x_TxC
    softmax = F.softmax(torch.zeros(9, 9).masked_fill(tril == 0, -torch.inf), dim=-1) @ x_TxC
    ours = uniform(scene(CausalConfig(), 9))(x_TxC, x_TxC, x_TxC, 0.0)
    for other in (matrix, softmax, ours):
        torch.testing.assert_close(other, loop)


@pytest.mark.parametrize("mask", MASKS, ids=named)
def test_the_mean_is_that_of_what_is_seen(mask: MaskConfig) -> None:
    x_TxC = torch.randn(12, 4)
    visible = masks.dense_mask(mask, 12)
    expected = torch.stack([x_TxC[row].mean(dim=0) for row in visible])
    torch.testing.assert_close(uniform(scene(mask, 12))(x_TxC, x_TxC, x_TxC, 0.0), expected)


def test_the_masks_with_blocks_are_those_that_the_settings_allow_them() -> None:
    for name, schema in REGISTERED.schemas.items():
        if name != PatternConfig.name:
            assert (local_reach(schema()) is not None) == issubclass(schema, LOCAL_MASKS), name


@pytest.mark.parametrize(
    ("mask", "length", "asked", "start", "expected"),
    [
        (CausalConfig(), 4096, AttentionBackend.auto, 0, AttentionBackend.sdpa),
        (BandedCausalConfig(window=64), 128, AttentionBackend.auto, 0, AttentionBackend.sdpa),
        (BandedCausalConfig(window=64), 4096, AttentionBackend.auto, 0, AttentionBackend.blocked),
        (BandedCausalConfig(window=2048), 4096, AttentionBackend.auto, 0, AttentionBackend.sdpa),
        (BandedCausalConfig(window=64), 4096, AttentionBackend.auto, 4095, AttentionBackend.sdpa),
        (BandedCausalConfig(window=64), 4096, AttentionBackend.blocked, 4095, AttentionBackend.sdpa),
        (BandedCausalConfig(window=64), 16, AttentionBackend.blocked, 0, AttentionBackend.blocked),
        (CausalConfig(), 16, AttentionBackend.dense, 3, AttentionBackend.dense),
    ],
)
def test_the_path_that_is_chosen(
    mask: MaskConfig, length: int, asked: AttentionBackend, start: int, expected: AttentionBackend
) -> None:
    assert choose_backend(mask, length, asked, start=start) is expected


@pytest.mark.parametrize(
    "mask", [CausalConfig(), BandedCausalConfig(window=64), BlockLocalConfig(block_size=7)], ids=named
)
def test_auto_takes_no_blocks_on_a_gpu(mask: MaskConfig) -> None:
    assert choose_backend(mask, 4096, AttentionBackend.auto, device_type="cuda") is AttentionBackend.sdpa
    assert choose_backend(mask, 4096, AttentionBackend.blocked, device_type="cuda") is AttentionBackend.blocked


def test_generating_with_a_cache_takes_sdpa_in_place_of_flex() -> None:
    assert choose_backend(CausalConfig(), 64, AttentionBackend.flex, device_type="cuda") is AttentionBackend.flex
    for start in (0, 63):
        chosen = choose_backend(
            CausalConfig(), 64, AttentionBackend.flex, start=start, has_cache=True, device_type="cuda"
        )
        assert chosen is AttentionBackend.sdpa


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_block_mask_is_made_once_for_equal_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import flex_attention

    made = []
    create = flex_attention.create_block_mask
    monkeypatch.setattr(
        flex_attention, "create_block_mask", lambda *a, **k: made.append(k["device"]) or create(*a, **k)
    )
    attention_backends._cached_block_mask.cache_clear()
    qkv = [x[..., :1].expand(-1, -1, -1, 16).clone() for x in inputs(40, requires_grad=False)]
    for mask in (StridedConfig(stride=3), StridedConfig(stride=3), StridedConfig(stride=4)):
        BACKENDS[AttentionBackend.flex](scene(mask, 40))(*qkv, 0.0)
    assert made == [torch.device("cpu")] * 2, "on the device of the model, whichever its number"


def test_flex_compiles_one_kernel_for_each_mask_and_use(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_and_note(
        function: Callable[..., Any], dynamic: bool | None = None, isolate_recompiles: bool = False
    ) -> Callable[..., Any]:
        compiled.append((dynamic, isolate_recompiles))
        return lambda *arguments, **keywords: len(compiled)

    monkeypatch.setattr(torch, "compile", compile_and_note)
    attention_backends._flex_kernel.cache_clear()
    plain = (False, False, True)
    kernels = [
        attention_backends._flex_kernel(attention_backends._Key(mask), use)
        for mask, use in (
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


def test_the_paths_are_named() -> None:
    assert describe_backends(make_config("model=bigram")) is None
    assert describe_backends(make_config()) == "attention by sdpa"
    assert (
        describe_backends(make_config("model.attention=uniform", "model.positions=none"))
        == "attention is the plain mean"
    )
    long = ("size.context_length=1024", "mask.window=32")
    assert describe_backends(make_config("mask=banded_causal", *long)) == "attention by blocked"
    assert describe_backends(make_config("mask=banded_causal", "mask.pattern=SL", *long)) == (
        "attention by blocked (banded_causal), sdpa (causal)"
    )
    assert describe_backends(make_config("trainer.attention_backend=dense")) == "attention by dense"


def test_flex_trains_on_a_gpu_alone() -> None:
    require_device(AttentionBackend.flex, torch.device("cuda"))
    require_device(AttentionBackend.blocked, torch.device("cpu"))
    with pytest.raises(SettingsError, match="flex has no backward pass on cpu"):
        require_device(AttentionBackend.flex, torch.device("cpu"))
