"""Check the saved state of an optimizer before it is loaded."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from typing import Any

import torch

from nanolm.training.checkpoints.values import COUNT, FINITE, LIST, TABLE, require, require_table, require_tensor
from nanolm.training.optimizers.lion import Lion
from nanolm.training.optimizers.muon import Muon
from nanolm.training.optimizers.schedule_free import ScheduleFreeAdamW

# Counters in the parameter groups of optimizers; everything else there is a setting.
COUNTERS = {"updates": COUNT, "weight_sum": FINITE}

Shape = tuple[int, ...]
Form = dict[str, Shape]


def _adam(shape: Shape) -> list[Form]:
    return [{"step": (), "exp_avg": shape, "exp_avg_sq": shape}]


def _adafactor(shape: Shape) -> list[Form]:
    if len(shape) < 2:
        return [{"step": (), "variance": shape}]
    return [{"step": (), "row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}]


def _of_same_shape(*forms: str) -> Callable[[Shape], list[Form]]:
    return lambda shape: [dict.fromkeys(names.split(), shape) for names in forms]


def _muon(shape: Shape) -> list[Form]:
    """AdamW's moments, or a momentum with the state of the options of Muon."""
    rows: Form = {"row_second_moment": (shape[0], 1)} if len(shape) == 2 else {}
    options: list[Form] = [{}, {"direction": shape}, rows, {"direction": shape, **rows}]
    return [dict.fromkeys(("first_moment", "second_moment"), shape), *({"momentum": shape, **form} for form in options)]


# The possible states of a parameter of some shape: the names in it and their shapes.
FORMS: dict[type[torch.optim.Optimizer], Callable[[Shape], list[Form]]] = {
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.SGD: _of_same_shape("momentum_buffer"),
    torch.optim.Adafactor: _adafactor,
    Lion: _of_same_shape("momentum"),
    Muon: _muon,
    ScheduleFreeAdamW: _of_same_shape("z second_moment", "z second_moment y"),
}


def checked_state(optimizer: torch.optim.Optimizer, saved: Any) -> dict[str, Any]:
    """Return the state dict to load into an optimizer, with its own settings and the saved counters and tensors.

    The settings of a plugin's optimizer are the saved ones, because its counters are not known.

    Args:
        optimizer: with the settings of the run.
        saved: the state dict of an optimizer of the same class.

    Raises:
        ValueError: the saved state has other groups, parameters, names, shapes or types.
    """
    require_table(saved, {"state": TABLE, "param_groups": LIST}, "it")
    is_known = type(optimizer) in FORMS
    own_groups = optimizer.state_dict()["param_groups"]
    if len(saved["param_groups"]) != len(own_groups):
        raise ValueError("loaded state dict has a different number of parameter groups")
    groups = [
        _checked_group(own, group, is_known, f"param_groups[{number}]")
        for number, (own, group) in enumerate(zip(own_groups, saved["param_groups"], strict=True))
    ]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, table in saved["state"].items():
        name = f"state[{reprlib.repr(number)}]"
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(f"{name} is of no parameter: there are {len(parameters):,}")
        require(table, TABLE, name)
        if table and is_known:
            _check_parameter(table, FORMS[type(optimizer)](tuple(parameters[number].shape)), name)
    return {"state": saved["state"], "param_groups": groups}


def _checked_group(own: dict[str, Any], saved: Any, is_known: bool, name: str) -> dict[str, Any]:
    require(saved, TABLE, name)
    if unknown := saved.keys() - own.keys() - {"initial_lr"}:
        raise ValueError(f"{name}.{reprlib.repr(min(unknown, key=str))} is unknown")
    if saved.get("params") != own["params"]:
        raise ValueError(f"{name}.params is {reprlib.repr(saved.get('params'))}, not {reprlib.repr(own['params'])}")
    for key, value in saved.items():
        if key in COUNTERS:
            require(value, COUNTERS[key], f"{name}.{key}")
        elif not is_known and not _is_alike(value, own.get(key)):
            raise ValueError(f"{name}.{key} is {reprlib.repr(value)}, not as {reprlib.repr(own[key])}")
    if not is_known:
        return saved
    return {**own, **{key: value for key, value in saved.items() if key in COUNTERS}}


def _is_alike(value: Any, own: Any) -> bool:
    """Return whether a value has the type of an optimizer's own; None has no type."""
    return own is None or type(value) is type(own) or {type(value), type(own)} == {int, float}


def _check_parameter(table: dict[Any, Any], forms: list[Form], name: str) -> None:
    form = next((form for form in forms if form.keys() == table.keys()), None)
    if form is None:
        wanted = " or ".join(", ".join(form) for form in forms)
        raise ValueError(f"{name} has {reprlib.repr(list(table))}, not {wanted}")
    for key, shape in form.items():
        require_tensor(table[key], shape, True, f"{name}.{key}")
    if "step" in form:
        step = table["step"].item()
        require(int(step) if math.isfinite(step) else step, COUNT, f"{name}.step")
