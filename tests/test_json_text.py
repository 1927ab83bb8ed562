import json
import math

import hypothesis
import pytest
from hypothesis import strategies as st

from nanolm.json_text import dump_json, is_finite_number, parse_json

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@hypothesis.given(TREES)
def test_dump_json_writes_only_json(tree: object) -> None:
    text = dump_json(tree)
    read = json.loads(text, parse_constant=refuse)
    assert dump_json(read) == text == dump_json(parse_json(text))


def test_dump_json_replaces_what_is_not_finite_by_null() -> None:
    assert dump_json({"a": [math.nan, (math.inf, 1.5)], "b": -math.inf}) == '{"a": [null, [null, 1.5]], "b": null}'


def test_parse_json_reads_what_is_not_finite_as_none() -> None:
    text = f'{{"a": [NaN, -Infinity, 1e999, -1E+400, 1e-999, 1e308], "b": 1{"0" * 400}, "c": "1e999"}}'
    assert parse_json(text) == {"a": [None, None, None, None, 0.0, 1e308], "b": None, "c": "1e999"}
    assert parse_json(text.encode()) == parse_json(text)


def test_parse_json_raises_value_error_for_anything_else() -> None:
    for text in ("", "{", "[" * 100_000, b"\xff"):
        with pytest.raises(ValueError):
            parse_json(text)


def test_is_finite_number() -> None:
    assert [is_finite_number(value) for value in (1, 1.5, math.nan, math.inf, True, "1", None, 10**400)] == [
        True, True, False, False, False, False, False, False,
    ]  # fmt: skip
