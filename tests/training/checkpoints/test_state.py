import pytest
import torch

from nanolm.config.trainer import Precision
from nanolm.errors import CheckpointError
from nanolm.training.checkpoints.state import TrainState
from nanolm.training.precision import NumberFormat


def test_state_of_other_parameter_groups_is_refused() -> None:
    device = torch.device("cpu")
    model = torch.nn.Linear(2, 2)
    one = torch.optim.SGD(model.parameters())
    two = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias]}])
    saved, state = (TrainState(model, it, NumberFormat(Precision.fp32, device), device) for it in (one, two))
    with pytest.raises(CheckpointError, match="the optimizer state does not match: loaded state dict has a different"):
        state.load_state_dict(saved.state_dict(), seed=1)


def test_state_dict_restores_scalars_and_generators() -> None:
    device = torch.device("cpu")
    number_format = NumberFormat(Precision.fp32, device)
    saved = TrainState(torch.nn.Linear(2, 2), None, number_format, device, step=3, best_val_loss=1.5)
    state = saved.state_dict()
    drawn = torch.rand(3)
    loaded = TrainState(torch.nn.Linear(2, 2), None, number_format, device)
    loaded.load_state_dict(state, seed=1)
    assert (loaded.step, loaded.best_val_loss) == (3, 1.5)
    assert torch.equal(torch.rand(3), drawn)
