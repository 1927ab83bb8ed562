import math

import torch

from nanolm.model.build import build
from tests.helpers import make_config


def test_a_bigram_reads_its_row() -> None:
    model = build(make_config("model=bigram"), 5)
    (table,) = model.parameters()
    assert table.shape == (5, 5)
    torch.nn.init.normal_(table)
    tokens = torch.tensor([[3, 1, 3]])
    assert torch.equal(model(tokens)[0], table[[3, 1, 3]])


def test_it_begins_as_an_even_guess() -> None:
    logits = build(make_config("model=bigram"), 5)(torch.tensor([[0]]))
    torch.testing.assert_close(logits.log_softmax(-1), torch.full((1, 1, 5), -math.log(5)))
