"""Tables of masks: evaluated when they are read, once, on the device, and never for backends that need none."""

from __future__ import annotations

import pytest
import torch

from nanolm.config.mask import BandedCausalConfig, CausalConfig, MaskConfig, NoMaskConfig
from nanolm.errors import SettingsError
from nanolm.model import mask_tables
from nanolm.model.build import build
from nanolm.model.mask_tables import MaskTables
from nanolm.model.masks import dense_mask
from nanolm.registry import MASKS
from tests.helpers import make_config

CPU = torch.device("cpu")
LINE = ("model=gpt2", "size=tiny", "size.n_layers=2", "size.context_length=64")


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the masks that were evaluated."""
    names: list[str] = []

    def evaluate(config: MaskConfig, *arguments: object) -> torch.Tensor:
        names.append(config.name)
        return original(config, *arguments)

    original = mask_tables.evaluate_mask
    monkeypatch.setattr(mask_tables, "evaluate_mask", evaluate)
    return names


def test_a_table_is_evaluated_once(evaluated: list[str]) -> None:
    tables = MaskTables([CausalConfig(), BandedCausalConfig(window=3), NoMaskConfig()], 9)
    assert not evaluated
    for _ in range(2):
        assert tables.read(0, CPU) is None
        assert torch.equal(tables.read(1, CPU), dense_mask(BandedCausalConfig(window=3), 9))
        assert tables.read(2, CPU).all()
    assert evaluated == ["banded_causal"]
    assert tables.read(1, torch.device("meta")).is_meta


@pytest.mark.parametrize(
    ("line", "is_read"),
    [
        ("mask=causal", False),
        ("mask=none", False),
        ("mask=block_local mask.block_size=8", False),
        ("mask=banded_causal mask.window=40", True),
        ("mask=banded_causal mask.window=4 trainer.attention_backend=sdpa", True),
        ("mask=strided", True),
    ],
)
def test_only_backends_that_read_a_table_have_it_built(line: str, is_read: bool, evaluated: list[str]) -> None:
    model = build(make_config(*LINE, *line.split()), 11)
    for _ in range(2):
        model(torch.zeros(1, 64, dtype=torch.int64))
    assert len(evaluated) == is_read


def test_a_table_of_inference_serves_training() -> None:
    model = build(make_config(*LINE, "mask=strided", "trainer.attention_backend=dense"), 11)
    tokens = torch.zeros(1, 64, dtype=torch.int64)
    with torch.inference_mode():
        model(tokens)
    model(tokens).sum().backward()


def test_masks_of_plugins_are_checked_when_a_model_is_built() -> None:
    MASKS.register("sees_nothing_first")(lambda query, key, config: key < query)
    with pytest.raises(SettingsError, match="lets position 0 see nothing"):
        MaskTables([MaskConfig(name="sees_nothing_first")], 4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["dense", "sdpa"])
def test_a_compiled_model_equals_the_eager_one(backend: str) -> None:
    model = build(make_config(*LINE, "mask=strided", f"trainer.attention_backend={backend}"), 11)
    torch.nn.init.normal_(model.token_embedding.weight)
    tokens = torch.randint(11, (2, 64))
    compiled = torch.compile(model, fullgraph=True)(tokens)
    torch.testing.assert_close(compiled, model(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_model_reads_the_table_of_a_plugin() -> None:
    calls = []

    @MASKS.register("counted")
    def counted(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor:
        calls.append(config.name)
        return key <= query

    config = make_config(*LINE)
    config.mask = MaskConfig(name="counted")
    model = build(config, 11)
    tokens = torch.randint(11, (2, 64))
    compiled = torch.compile(model)
    for _ in range(2):
        torch.testing.assert_close(compiled(tokens), model(tokens), atol=1e-4, rtol=1e-4)
    assert len(calls) == 1
