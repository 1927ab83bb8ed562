from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nanolm.config.interpolation import escape, has_interpolation, map_strings, unescape, variables_in

TEXTS = st.text(alphabet=st.sampled_from("\\${}a:'\" \n,é"))


@given(TEXTS)
def test_escaped_string_is_the_same_in_omegaconf(text: str) -> None:
    assert unescape(escape(text)) == text
    assert not has_interpolation(escape(text))
    assert OmegaConf.to_container(OmegaConf.create({"a": escape(text)}), resolve=True) == {"a": text}


def test_map_strings_changes_every_string() -> None:
    assert map_strings(str.upper, {"a": ["b", {"c": "d"}], "e": 1, "f": None}) == {
        "a": ["B", {"c": "D"}],
        "e": 1,
        "f": None,
    }


def test_long_run_of_backslashes_is_searched_once() -> None:
    text = "\\" * 200_000
    assert unescape(text + "x${y}") == text + "x${y}"
    assert unescape(text + "${y}") == text[::2] + "${y}"


def test_variables_are_found() -> None:
    assert variables_in("${oc.env:A}/${ oc.env : B }${oc.env:'C',x}${oc.decode:${oc.env:D}}") == ["A", "B", "C", "D"]
    assert variables_in(r"\${oc.env:A} ${b} oc.env:C") == []
