import json
import math
from pathlib import Path

import pytest
import torch

from nanolm.config.trainer import Precision
from nanolm.errors import CheckpointError
from nanolm.training.checkpoints.state import TrainState, flatten, unflatten
from nanolm.training.precision import NumberFormat


def test_a_tree_survives_json_and_tensors() -> None:
    tree = {
        "a": [1, 2.5, None, True, "x"],
        3: {"inner": (torch.arange(3), math.inf)},
        "betas": (0.9, 0.1 + 0.2),
        "empty": [{}, [], ()],
    }
    shape, tensors = flatten(tree)
    again = unflatten(json.loads(json.dumps(shape, allow_nan=False)), tensors)
    assert torch.equal(again[3]["inner"][0], torch.arange(3))
    again[3]["inner"] = tree[3]["inner"] = None  # type: ignore[index,call-overload]
    assert again == tree


def test_numbers_that_are_not_finite_survive_json() -> None:
    tree = {"best": math.inf, "list": [-math.inf, 1.5]}
    shape, tensors = flatten(tree)
    assert unflatten(json.loads(json.dumps(shape, allow_nan=False)), tensors) == tree
    assert math.isnan(unflatten(flatten(math.nan)[0], {}))
    older = {"dict": [["best", {"value": math.inf}], ["list", {"list": [{"value": -math.inf}, {"value": 1.5}]}]]}
    assert unflatten(json.loads(json.dumps(older)), {}) == tree


def test_what_is_neither_is_refused() -> None:
    with pytest.raises(AssertionError, match="Path"):
        flatten({"path": Path("x")})


def test_the_state_of_another_optimizer_is_refused() -> None:
    device = torch.device("cpu")
    model = torch.nn.Linear(2, 2)
    one = torch.optim.SGD(model.parameters())
    two = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias]}])
    saved, state = (TrainState(model, it, NumberFormat(Precision.fp32, device), device) for it in (one, two))
    with pytest.raises(CheckpointError, match="the optimizer's state does not fit: loaded state dict has a different"):
        state.load_state_dict(saved.state_dict(), seed=1)
