import pytest
import torch
from torch.testing import assert_close

from nanolm.model.build import build
from nanolm.model.mlp import Mlp
from tests.helpers import make_config


def build_mlp(*overrides: str) -> Mlp:
    config = make_config("model=mlp", "size.d_model=6", "size.context_length=12", "model.window=3", *overrides)
    model = build(config, 7)
    assert isinstance(model, Mlp)
    return model


@pytest.mark.parametrize("direct", ["false", "true"])
def test_mlp_equals_the_equation_of_the_paper(direct: str) -> None:
    model = build_mlp(f"model.direct={direct}", "size.d_ff=5")
    tokens = [4, 1, 6, 0, 2]
    found = model(torch.tensor([tokens]))[0]
    vectors = [torch.zeros(6), torch.zeros(6), *model.token_embedding.weight[tokens]]
    for at in range(len(tokens)):
        x = torch.cat(vectors[at : at + 3])
        y = model.head.bias + model.head.weight @ torch.tanh(model.hidden.bias + model.hidden.weight @ x)
        if model.direct is not None:
            y = y + model.direct.weight @ x
        assert_close(found[at], y)


def test_mlp_sees_its_window_and_no_more() -> None:
    model = build_mlp()
    tokens_1xT = torch.tensor([[1, 2, 3, 4, 5, 6, 0, 1]])
    changed = tokens_1xT.clone()
    changed[0, 2] = 0
    difference = (model(tokens_1xT) - model(changed)).abs().amax(-1)[0]
    assert difference.gt(0).tolist() == [False, False, True, True, True, False, False, False]
