import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from nanolm.compose import config_folder
from nanolm.config.scheduler import (
    ChainConfig,
    ConstantConfig,
    CosineConfig,
    CosineRestartsConfig,
    ExponentialConfig,
    InverseSqrtConfig,
    LinearConfig,
    OneCycleConfig,
    PlateauConfig,
    ProductConfig,
    SchedulerConfig,
    StepConfig,
    TrapezoidConfig,
    warmup_of,
)
from nanolm.registry import SCHEDULERS
from nanolm.training.schedules import Memory, after_evaluation, factor

Schedulers = Callable[[torch.optim.Optimizer], Any]


def factors(config: SchedulerConfig, steps: int) -> list[float]:
    return [factor(step, steps, config) for step in range(steps)]


def factors_of_torch(make: Schedulers, steps: int) -> list[float]:
    """What torch makes of lr 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def sequence(optimizer: torch.optim.Optimizer) -> Any:
    stable = lr_scheduler.ConstantLR(optimizer, 1.0)
    decay = lr_scheduler.LinearLR(optimizer, 1.0, 0.25, 20)
    return lr_scheduler.SequentialLR(optimizer, [stable, decay], [80])


@pytest.mark.parametrize(
    ("config", "make"),
    [
        (ConstantConfig(fraction=0.3), lambda o: lr_scheduler.ConstantLR(o, 0.3, 1000)),
        (LinearConfig(final_fraction=0.2), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, 100)),
        (CosineConfig(final_fraction=0.2), lambda o: lr_scheduler.CosineAnnealingLR(o, 100, 0.2)),
        (CosineRestartsConfig(), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 25)),
        (
            CosineRestartsConfig(period=7, period_multiplier=2, final_fraction=1e-3),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7, 2, 1e-3),
        ),
        (StepConfig(step_size=7, gamma=0.95), lambda o: lr_scheduler.StepLR(o, 7, 0.95)),
        (StepConfig(), lambda o: lr_scheduler.StepLR(o, 33, 0.1)),
        (ExponentialConfig(final_fraction=0.5**10), lambda o: lr_scheduler.ExponentialLR(o, 0.5**0.1)),
        (InverseSqrtConfig(), lambda o: lr_scheduler.LambdaLR(o, lambda step: (step + 1) ** -0.5)),
        (TrapezoidConfig(final_fraction=0.25), sequence),
        (OneCycleConfig(), lambda o: lr_scheduler.OneCycleLR(o, 1.0, 100, cycle_momentum=False)),
        (
            OneCycleConfig(rise_fraction=0.45, initial_fraction=0.1, final_fraction=1e-3),
            lambda o: lr_scheduler.OneCycleLR(
                o, 1.0, 100, pct_start=0.45, div_factor=10, final_div_factor=100, cycle_momentum=False
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
def test_schedule_equals_that_of_torch(config: SchedulerConfig, make: Schedulers) -> None:
    config.warmup_steps = 0
    assert factors(config, 100) == pytest.approx(factors_of_torch(make, 100), rel=1e-9, abs=1e-15)


def test_product_with_update_every_equals_epoch_schedule() -> None:
    """StepLR(step_size=1, gamma=0.95) and CosineAnnealingWarmRestarts(T_0=10, eta_min=1e-5) of lr 1e-2, in epochs."""
    steps_in_epoch, epochs = 7, 25
    config = ProductConfig(
        warmup_steps=0,
        update_every=steps_in_epoch,
        parts=[
            {"name": "step", "step_size": steps_in_epoch, "gamma": 0.95},
            {"name": "cosine_restarts", "period": 10 * steps_in_epoch, "final_fraction": 1e-5 / 1e-2},
        ],
    )
    by_epoch = [
        steps * restarts
        for steps, restarts in zip(
            factors_of_torch(lambda o: lr_scheduler.StepLR(o, 1, 0.95), epochs),
            factors_of_torch(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, eta_min=1e-3), epochs),
            strict=True,
        )
    ]
    by_step = [value for value in by_epoch for _ in range(steps_in_epoch)]
    assert factors(config, epochs * steps_in_epoch) == pytest.approx(by_step, rel=1e-12)
    config.update_every = 1
    assert factors(config, epochs * steps_in_epoch)[::steps_in_epoch] == pytest.approx(by_epoch, rel=1e-12)


def test_torch_chain_of_step_and_restarts_is_no_product() -> None:
    """What the docstring of `product` says."""
    steps, restarts = lr_scheduler.StepLR, lr_scheduler.CosineAnnealingWarmRestarts
    alone = factors_of_torch(lambda o: restarts(o, 4), 9)
    for order, gammas in (((0, 1), [1.0] * 9), ((1, 0), [1.0] + [0.5] * 8)):

        def make(optimizer: torch.optim.Optimizer, order: tuple[int, int] = order) -> Any:
            both = [steps(optimizer, 1, 0.5), restarts(optimizer, 4)]
            return lr_scheduler.ChainedScheduler([both[n] for n in order], optimizer)

        assert factors_of_torch(make, 9) == pytest.approx([a * g for a, g in zip(alone, gammas, strict=True)])


def test_chain_gives_each_part_its_own_steps() -> None:
    config = ChainConfig(
        warmup_steps=10,
        parts=["cosine", {"name": "constant", "fraction": 0.5}, {"name": "linear", "final_fraction": 0.2}],
        boundaries=[40, 60],
    )
    found = factors(config, 100)
    assert found[:10] == pytest.approx([(n + 1) / 11 for n in range(10)])
    assert found[10:40] == pytest.approx(factors(CosineConfig(warmup_steps=0), 30))
    assert found[40:60] == [0.5] * 20
    assert found[60:] == pytest.approx(factors(LinearConfig(warmup_steps=0, final_fraction=0.2), 40))


def test_inverse_sqrt_matches_formula_of_the_paper() -> None:
    """The schedule lrate = d^-0.5 min(n^-0.5, n w^-1.5) for n = 1, 2, ...; the warmup ends before its peak w."""
    peak = 31
    by_paper = [min(n**-0.5, n * peak**-1.5) * math.sqrt(peak) for n in range(1, 201)]
    assert factors(InverseSqrtConfig(warmup_steps=peak - 1), 200) == pytest.approx(by_paper)


def test_every_number_of_steps_is_supported() -> None:
    names = [path.stem for path in config_folder().glob("scheduler/*.yaml")]
    assert set(names) == set(SCHEDULERS.schemas)
    for name in set(names) - {"product", "chain"}:
        for steps in (1, 2, 3, 19, 20, 100):
            for found in (
                factors(SCHEDULERS.schemas[name](), steps),
                [factor(3 * steps, steps, SCHEDULERS.schemas[name]())],
            ):
                assert all(0 <= value <= 1 for value in found), (name, steps)


def test_plateau_equals_that_of_torch() -> None:
    config = PlateauConfig(warmup_steps=0, gamma=0.3, patience=1, threshold=0.01, final_fraction=0.05)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=1, threshold=0.01, min_lr=0.05)
    memory: Memory = {}
    found = []
    for loss in (3.0, 2.0, 1.99, 1.985, 1.9, 1.9, 1.9, 1.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7):
        memory = after_evaluation(memory, loss, config)
        scheduler.step(loss)
        found.append(factor(5, 100, config, memory))
        assert found[-1] == pytest.approx(optimizer.param_groups[0]["lr"])
    assert {round(value, 3) for value in found} == {1.0, 0.3, 0.09, 0.05}
    assert after_evaluation({}, 1.0, ConstantConfig()) == {}


def test_update_every_holds_a_value() -> None:
    found = factors(LinearConfig(warmup_steps=3, update_every=5), 23)
    assert found[3:] == [value for value in (1.0, 0.75, 0.5, 0.25) for _ in range(5)]


def test_warmup_is_linear_and_cosine_ends_at_final_fraction() -> None:
    config = CosineConfig(warmup_steps=10, final_fraction=0.1)
    factors = [factor(step, 100, config) for step in range(101)]
    assert factors[:10] == pytest.approx([(n + 1) / 11 for n in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_schedule_stays_at_its_end_after_max_steps() -> None:
    assert factor(500, 100, CosineConfig(warmup_steps=0, final_fraction=0.1)) == pytest.approx(0.1)


def test_default_warmup_is_a_twentieth_of_the_steps() -> None:
    assert [factor(step, 100, ConstantConfig()) for step in (0, 4, 5)] == pytest.approx([1 / 6, 5 / 6, 1])
    assert factor(0, 10, ConstantConfig()) == 1


@pytest.mark.parametrize("name", sorted(SCHEDULERS.names - {"product", "chain"}))
def test_every_schedule_has_a_warmup_and_cooldown_in_fractions(name: str) -> None:
    schema = SCHEDULERS.schema(name)
    plain = factors(schema(warmup_steps=20), 200)
    by_fractions = factors(schema(warmup_fraction=0.1, cooldown_fraction=0.3), 200)
    assert by_fractions[:141] == plain[:141]
    assert by_fractions[141:] == pytest.approx([plain[step] * (200 - step) / 60 for step in range(141, 200)])


def test_warmup_fraction_is_exact() -> None:
    assert [warmup_of(ConstantConfig(warmup_fraction=0.05), steps) for steps in range(500)] == [
        warmup_of(ConstantConfig(), steps) for steps in range(500)
    ]


def test_constant_with_cooldown_is_a_trapezoid() -> None:
    trapezoid = factors(TrapezoidConfig(warmup_steps=0, decay_fraction=0.2), 100)
    assert factors(ConstantConfig(warmup_steps=0, cooldown_fraction=0.2), 100) == pytest.approx(trapezoid, abs=1e-12)
