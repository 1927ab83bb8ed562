import torch
from torch import nn

from nanolm.training.optimizers import build as optimizers
from tests.helpers import make_optimizer_config, set_random_gradients


def test_lion_step_matches_formula() -> None:
    model = nn.Linear(4, 3, bias=False)
    weight, momentum = model.weight.detach().clone(), torch.zeros(3, 4)
    optimizer = optimizers.build(
        make_optimizer_config("lion", "lr=0.1", "weight_decay=0.5", "beta1=0.8", "beta2=0.6"), model
    )
    for update in range(4):
        set_random_gradients(model, update)
        assert model.weight.grad is not None
        weight = weight - 0.1 * ((0.8 * momentum + 0.2 * model.weight.grad).sign() + 0.5 * weight)
        momentum = 0.6 * momentum + 0.4 * model.weight.grad
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), weight)
