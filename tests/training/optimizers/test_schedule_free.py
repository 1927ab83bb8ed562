import torch
from torch import nn

from nanolm.training.optimizers import build as optimizers
from nanolm.training.optimizers.schedule_free import ScheduleFreeAdamW
from tests.helpers import make_optimizer_config, set_random_gradients


def test_schedule_free_matches_algorithm_of_the_paper() -> None:
    """Three points kept apart in double precision, as in algorithm 1, with AdamW's division and a changing lr."""
    model = nn.Linear(4, 3, bias=False).double()
    optimizer = optimizers.build(
        make_optimizer_config("schedule_free", "weight_decay=0.3", "beta1=0.8", "beta2=0.9"), model
    )
    z = x = y = model.weight.detach().clone()
    second, total = torch.zeros(3, 4).double(), 0.0
    for update, lr in enumerate((0.01, 0.02, 0.03, 0.03, 0.01)):
        optimizer.param_groups[0]["lr"] = lr
        set_random_gradients(model, update)
        gradient = model.weight.grad
        assert gradient is not None
        optimizer.step()
        second = 0.9 * second + 0.1 * gradient**2
        z = z - lr * (gradient / ((second / (1 - 0.9 ** (update + 1))).sqrt() + 1e-8) + 0.3 * y)
        total += lr**2
        x = (1 - lr**2 / total) * x + lr**2 / total * z
        y = 0.2 * z + 0.8 * x
        torch.testing.assert_close(model.weight.detach(), y)
        with optimizers.evaluation_weights(optimizer):
            torch.testing.assert_close(model.weight.detach(), x)


def test_averaged_restores_parameters_exactly() -> None:
    model = nn.Linear(50, 50)
    optimizer = optimizers.build(make_optimizer_config("schedule_free"), model)
    assert isinstance(optimizer, ScheduleFreeAdamW)
    with optimizer.averaged():
        pass  # nothing has moved yet
    for update in range(3):
        set_random_gradients(model, update)
        optimizer.step()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    held = {id(state): set(state) for state in optimizer.state.values()}
    with optimizer.averaged():
        assert not torch.equal(before[0], model.weight)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert held == {id(state): set(state) for state in optimizer.state.values()}
