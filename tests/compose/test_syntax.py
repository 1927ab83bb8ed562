"""Paths on the command line need no quotes."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nanolm.compose import parse, to_hydra_syntax
from nanolm.compose.syntax import path_fields


def read(word: str, multirun: bool = False) -> object:
    """The value of an override after Hydra and OmegaConf have read it."""
    (override,) = parse(to_hydra_syntax([word], multirun))
    return OmegaConf.to_container(OmegaConf.create({"value": override.value()}), resolve=True)["value"]  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    "value",
    [
        *("naïve.txt", "a b", "a#b&c(d)=e", "[x]", "{y}", "it's", ' "a', "a:b", "*?!", "2024", "1e3", "true"),
        *("C:\\x\\", "a${b.txt", "\\s", "a, b", "~x", "-x", "$HOME", "key=value", "inf", "@", "a'b\"c"),
    ],
)
@pytest.mark.parametrize("key", ["dataset.path", "tokenizer.path", "resume", "hydra.run.dir", "+dataset.val_path"])
def test_a_path_stands_for_itself(key: str, value: str) -> None:
    assert read(f"{key}={value}") == value


@given(st.text(alphabet=st.sampled_from("ab \\'\"${}[](),=:#é~"), min_size=1))
@settings(max_examples=100)
def test_reading_a_path_twice_changes_nothing(value: str) -> None:
    once = to_hydra_syntax([f"dataset.path={value}"])
    assert to_hydra_syntax(once) == once
    parse(once)


def test_what_is_in_hydras_grammar_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_TEST", "x")
    assert read("dataset.path='a b'") == "a b"
    assert read("dataset.path=${oc.env:NANOLM_TEST}/naïve.txt") == "x/naïve.txt"
    assert read("dataset.path=a\\${b}.txt") == "a${b}.txt"
    assert read("hydra.run.dir=lr\\=0.1") == "lr=0.1"
    assert read("dataset.val_path=null") is None
    assert read("resume=auto") == "auto"
    assert read("plugins=my_masks") == ["my_masks"]


def test_a_path_that_exists_is_taken_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "${c}", "'d'", "e\\ f", "null"):
        Path(name).touch()
        assert read(f"dataset.path={name}") == name
        assert read(f"dataset.path={name}", multirun=True) == name
    assert read("dataset.val_path=null") is None


def test_commas_of_a_sweep_part_paths() -> None:
    words = to_hydra_syntax(["dataset.path=naïve.txt,b (1).txt,'c,d',${oc.env:X,y}", "dataset.path=choice(a,b)"], True)
    assert words == ["dataset.path='naïve.txt','b (1).txt','c,d','${oc.env:X,y}'", "dataset.path=choice(a,b)"]


def test_path_fields_come_from_the_schemas() -> None:
    assert {"dataset.path", "dataset.test_path", "tokenizer.path", "resume"} <= path_fields().keys()
    assert "trainer.attention_backend" not in path_fields()
