import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nanolm.plain_yaml import MAX_BYTES, MAX_DEPTH, MAX_VALUES, PlainYamlError, load_plain_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=20,
)


@given(plain)
def test_plain_values_are_loaded(value: object) -> None:
    assert load_plain_yaml(yaml.safe_dump(value)) == value


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        (BOMB, "anchors and aliases", 1),
        ("a: 1\nzz: &z {a: *z}", "anchors and aliases", 2),
        ("a: " + "[" * 60_000, f"more than {MAX_DEPTH} levels", 1),
        ("- " * 3000 + "x", f"more than {MAX_DEPTH} levels", 1),
        ("\n".join(" " * depth + "k:" for depth in range(300)), f"more than {MAX_DEPTH} levels", MAX_DEPTH + 1),
        ("x" * (MAX_BYTES + 1), "1,000,001 bytes", None),
        ("a: 2020-01-01", "timestamp", 1),
        ("a: !!set {x}", "tag", 1),
        ("a: !!binary aGk=", "tag", 1),
        ("a: !!python/object/apply:os.system [id]", "tag", 1),
        ("a: b\n---\nc: d", "several documents", 2),
        ("a: [", "did not find", 2),
        (b"a: \xff", "utf-8", None),
        ("- ? " * 100_000, f"more than {MAX_DEPTH} levels", 1),
        ("-  " * 100_000, f"more than {MAX_DEPTH} levels", 1),
        ("\r".join(" " * depth + "k:" for depth in range(1000)), f"more than {MAX_DEPTH} levels", MAX_DEPTH + 1),
        ("\u2028".join(" " * depth + "k:" for depth in range(900)), f"more than {MAX_DEPTH} levels", MAX_DEPTH + 1),
        ("a: [" + "1," * 490_000 + "]", f"more than {MAX_VALUES:,} keys and values", 1),
        ("a: ['" + "\\uDCFF', '" * 30_000 + "']", f"more than {MAX_VALUES:,} keys and values", 1),
        ("a: " + "9" * 4000, "too large", 1),
        ("a: " + "9" * 19, "too large", 1),
        ("a: 0x" + "f" * 900_000, "too large", 1),
        ("a: 1" + ":59" * 300_000, "too large", 1),
        ("a: 1" + ":59" * 300_000 + ".5", "too large", None),
        ("a: !" + "x" * 900_000 + " b", "the tag !x+ is not supported", 1),
        ("a: \0", "control characters", None),
        ("? [a]\n: b", "unhashable key", 1),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else None,
)
def test_other_text_is_refused_with_its_line(text: str | bytes, reason: str, line: int | None) -> None:
    with pytest.raises(PlainYamlError, match=reason) as caught:
        load_plain_yaml(text)
    assert caught.value.line == line


def test_reasons_are_short() -> None:
    long = "x" * 900_000
    for text in (f"a: !{long} b", f"? {long}\n: 1\n? {long}\n: *a", f"%TAG {long} {long}\n---\n"):
        with pytest.raises(PlainYamlError) as caught:
            load_plain_yaml(text)
        assert len(str(caught.value)) <= 200


def test_escapes_of_file_names_that_are_not_utf_8_are_loaded() -> None:
    assert load_plain_yaml('a: "\\uDCFF.txt"') == {"a": "\udcff.txt"}
