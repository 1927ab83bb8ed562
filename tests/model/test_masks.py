import pytest
import torch

from nanolm.config import CausalConfig, MaskConfig
from nanolm.errors import SettingsError
from nanolm.model import masks
from nanolm.registry import MASKS


def test_causal_sees_itself_and_what_came_before() -> None:
    assert masks.dense(CausalConfig(), 3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_a_row_that_sees_nothing_is_refused() -> None:
    MASKS.register("only_before")(only_before)
    with pytest.raises(SettingsError, match="leaves position 0 with nothing to see"):
        masks.dense(MaskConfig(name="only_before"), 4)


def only_before(query: torch.Tensor, key: torch.Tensor, config: MaskConfig) -> torch.Tensor:
    return key < query
