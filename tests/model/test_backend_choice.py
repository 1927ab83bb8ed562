import pytest
import torch

from nanolm.config.mask import BandedCausalConfig, BlockLocalConfig, CausalConfig, MaskConfig
from nanolm.config.trainer import AttentionBackend
from nanolm.errors import SettingsError
from nanolm.model.backend_choice import choose_backend, describe_backends, require_device
from nanolm.model.masks import describe_mask
from tests.helpers import make_config


@pytest.mark.parametrize(
    ("mask", "length", "backend", "start", "expected"),
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
def test_choice_depends_on_mask_length_and_start(
    mask: MaskConfig, length: int, backend: AttentionBackend, start: int, expected: AttentionBackend
) -> None:
    assert choose_backend(mask, length, backend, start=start) is expected


@pytest.mark.parametrize(
    "mask", [CausalConfig(), BandedCausalConfig(window=64), BlockLocalConfig(block_size=7)], ids=describe_mask
)
def test_auto_avoids_blocked_attention_on_a_gpu(mask: MaskConfig) -> None:
    assert choose_backend(mask, 4096, AttentionBackend.auto, device_type="cuda") is AttentionBackend.sdpa
    assert choose_backend(mask, 4096, AttentionBackend.blocked, device_type="cuda") is AttentionBackend.blocked


def test_generation_with_a_cache_uses_sdpa_instead_of_flex() -> None:
    assert choose_backend(CausalConfig(), 64, AttentionBackend.flex, device_type="cuda") is AttentionBackend.flex
    for start in (0, 63):
        chosen = choose_backend(
            CausalConfig(), 64, AttentionBackend.flex, start=start, has_cache=True, device_type="cuda"
        )
        assert chosen is AttentionBackend.sdpa


def test_describe_backends_names_each_backend() -> None:
    assert describe_backends(make_config("model=bigram")) is None
    assert describe_backends(make_config()) == "sdpa attention"
    assert describe_backends(make_config("model.attention=uniform", "model.positions=none")) == "uniform attention"
    long = ("size.context_length=1024", "mask.window=32")
    assert describe_backends(make_config("mask=banded_causal", *long)) == "blocked attention"
    assert describe_backends(make_config("mask=banded_causal", "mask.pattern=SL", *long)) == (
        "attention: blocked (banded_causal), sdpa (causal)"
    )
    assert describe_backends(make_config("trainer.attention_backend=dense")) == "dense attention"


def test_flex_trains_on_a_gpu_only() -> None:
    require_device(AttentionBackend.flex, torch.device("cuda"))
    require_device(AttentionBackend.blocked, torch.device("cpu"))
    with pytest.raises(SettingsError, match="flex has no backward pass on cpu"):
        require_device(AttentionBackend.flex, torch.device("cpu"))
