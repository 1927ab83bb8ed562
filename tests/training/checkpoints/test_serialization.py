import json
import math
from pathlib import Path

import pytest
import torch

from nanolm.training.checkpoints.serialization import cpu_copy, flatten, unflatten


def test_cpu_copy_is_contiguous_and_shares_no_memory() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    copy = cpu_copy(tensor.T)
    tensor += 1
    assert copy.is_contiguous()
    assert copy.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_nested_state_round_trip() -> None:
    state = {
        "a": [1, 2.5, None, True, "x"],
        3: {"inner": (torch.arange(3), math.inf)},
        "betas": (0.9, 0.1 + 0.2),
        "empty": [{}, [], ()],
    }
    structure, tensors = flatten(state)
    again = unflatten(json.loads(json.dumps(structure, allow_nan=False)), tensors)
    assert torch.equal(again[3]["inner"][0], torch.arange(3))
    again[3]["inner"] = state[3]["inner"] = None  # type: ignore[index,call-overload]
    assert again == state


def test_non_finite_numbers_round_trip() -> None:
    state = {"best": math.inf, "list": [-math.inf, 1.5]}
    structure, tensors = flatten(state)
    assert unflatten(json.loads(json.dumps(structure, allow_nan=False)), tensors) == state
    assert math.isnan(unflatten(flatten(math.nan)[0], {}))
    older = {"dict": [["best", {"value": math.inf}], ["list", {"list": [{"value": -math.inf}, {"value": 1.5}]}]]}
    assert unflatten(json.loads(json.dumps(older)), {}) == state


def test_other_objects_are_refused() -> None:
    with pytest.raises(AssertionError, match="Path"):
        flatten({"path": Path("x")})
