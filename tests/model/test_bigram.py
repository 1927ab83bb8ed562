import math

import torch

from nanolm.model.build import build
from tests.helpers import make_config


def test_bigram_returns_the_row_of_each_token() -> None:
    model = build(make_config("model=bigram"), 5)
    (table,) = model.parameters()
    assert table.shape == (5, 5)
    torch.nn.init.normal_(table)
    tokens = torch.tensor([[3, 1, 3]])
    assert torch.equal(model(tokens)[0], table[[3, 1, 3]])


def test_bigram_is_uniform_before_training() -> None:
    logits = build(make_config("model=bigram"), 5)(torch.tensor([[0]]))
    torch.testing.assert_close(logits.log_softmax(-1), torch.full((1, 1, 5), -math.log(5)))
