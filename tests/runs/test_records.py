import dataclasses
from typing import Any

import pytest

from nanolm.json_text import MAX_DEPTH, parse_object
from nanolm.runs.metrics import MetricsRow
from nanolm.runs.records import MAX_INT, from_json
from nanolm.runs.samples import Sample
from nanolm.runs.summary import Summary


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, Summary()),
        ({"step": 3.0, "best_val_loss": 2}, Summary(step=3, best_val_loss=2)),
        (
            {"step": None, "choices": None, "baseline_losses": {"a": None, "b": 2.5}},
            Summary(baseline_losses={"b": 2.5}),
        ),
        ({"unknown": {"a": [1]}, "step": MAX_INT}, Summary(step=MAX_INT)),
        ({"best_val_loss": 1e300, "baseline_losses": {"a": 1e60}}, Summary()),
        ({"git": {"commit": None, "dirty": True, "more": []}}, Summary(git={"dirty": True})),
    ],
)
def test_valid_and_unknown_values_are_read(table: dict[str, Any], expected: Summary) -> None:
    assert from_json(Summary, table) == expected


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("step", "20", "step is '20', and must be a whole number"),
        ("step", True, "step is True, and must be a whole number"),
        ("step", 1.5, "step is 1.5, and must be a whole number"),
        ("step", -1, f"step is -1, and must be a whole number from 0 to {MAX_INT}"),
        ("step", 10**30, f"step is {10**30}, and must be a whole number from 0 to {MAX_INT}"),
        ("best_val_loss", "nan", "best_val_loss is 'nan', and must be a number"),
        ("best_val_loss", False, "best_val_loss is False, and must be a number"),
        ("best_val_loss", [1.5], r"best_val_loss is \[1.5\], and must be a number"),
        ("status", 7, "status is 7, and must be text"),
        ("lossless", "yes", "lossless is 'yes', and must be true or false"),
        ("choices", "x" * 100, r"choices is 'x+\.\.\., and must be a JSON object"),
        ("choices", {"model": 3}, "choices.model is 3, and must be text"),
        ("baseline_losses", {"a": "x"}, "baseline_losses.a is 'x', and must be a number"),
        ("parent", {"run": 3}, "parent.run is 3, and must be text"),
        ("parent", {"step": "3"}, "parent.step is '3', and must be a whole number"),
        ("parent", [], r"parent is \[\], and must be a JSON object"),
    ],
)
def test_wrong_types_are_named_with_their_field(field: str, value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        from_json(Summary, {"seed": 1, field: value})


def test_missing_fields_are_named() -> None:
    for table, missing in (({}, "step or split"), ({"step": 3}, "split"), ({"step": None, "split": "val"}, "step")):
        with pytest.raises(ValueError, match=f"^it has no {missing}$"):
            from_json(MetricsRow, table)
    with pytest.raises(ValueError, match=r"^text is 3, and must be text$"):
        from_json(Sample, {"step": 3, "text": 3})


@pytest.mark.parametrize("field", dataclasses.fields(Summary), ids=lambda field: field.name)
def test_every_field_refuses_a_list(field: dataclasses.Field[Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{field.name} is \[\[\]\], and must be "):
        from_json(Summary, {field.name: [[]]})


def test_deep_nesting_is_refused() -> None:
    for depth, is_refused in ((MAX_DEPTH - 1, False), (MAX_DEPTH, True), (900, True), (200_000, True)):
        text = '{"unknown": ' + '{"a":' * (depth - 1) + "[]" + "}" * (depth - 1) + "}"
        if is_refused:
            with pytest.raises(ValueError, match="nested too deeply"):
                parse_object(text)
        else:
            assert from_json(Summary, parse_object(text)) == Summary()
