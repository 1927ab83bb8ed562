import json
from pathlib import Path
from typing import Any

import pytest

from nanolm.config.dataset import InstructionsConfig, Nul
from nanolm.data import corpus as corpora
from nanolm.data.corpus import Corpus
from nanolm.data.corpus.instructions import MAX_SHOWN
from nanolm.errors import DataError, NanolmError

GOOD = {"prompt": "1+1", "response": "2"}


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def load_rows(path: Path, *rows: Any, **settings: Any) -> Corpus:
    write_rows(path, *rows)
    return corpora.load(InstructionsConfig(path=str(path), **settings))


def talk(*contents: Any) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(contents)
    return {"messages": [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]}


def test_instructions_rows_are_documents_with_scored_responses(tmp_path: Path) -> None:
    rows = [GOOD, "", talk("a", "b\nc", "d", "e"), {"id": 3, **GOOD}]
    corpus = load_rows(tmp_path / "rows.jsonl", *rows, val_fraction=0.3)
    assert corpus.n_documents == {"train": 3}
    assert corpus.is_partly_scored
    pieces = list(corpus.pieces())
    assert sorted(piece.text for piece in pieces if piece.scored) == sorted(
        ["2", "<|end|>\n", "b\nc", "<|end|>\n", "e", "<|end|>\n", "2", "<|end|>\n"]
    )
    assert sum(piece.begins for piece in pieces) == 3
    assert "".join(corpus.scored_texts("val")) in "".join(corpus.documents("val"))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("no json", "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        ("[1]", "this is list, not an object"),
        ({"prompt": "a"}, "there is no field 'response'"),
        ({"text": "a"}, "there is no field 'prompt' and no field 'response'; its fields: 'text'"),
        ({"prompt": "a", "response": ""}, "'response' is empty"),
        ({"prompt": "a", "response": " \n"}, "'response' is blank"),
        ({"prompt": None, "response": ["b"]}, "'prompt' holds null, not text; 'response' holds list, not text"),
        ({"prompt": "a", "response": "\ud800"}, "U+D800"),
        ({"prompt": "a", "response": "\0\0\0\0b"}, "4 NULs in 5 characters"),
        ({"messages": []}, "'messages' holds an empty list, not a list of messages"),
        ({"messages": "a"}, "'messages' holds str, not a list of messages"),
        ({**talk("a", "b"), "prompt": "c"}, "it has 'messages' as well as 'prompt'"),
        (talk("a"), "no message has the role 'assistant', so there is nothing to learn"),
        (talk("a", 4), "message 2 (assistant) holds int, not text"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "message 1 has the role 'robot'"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "message 1 has the role ['user']"),
        ({"messages": [{"content": "a"}, 7]}, "message 1 has no role; message 2 is int, not an object"),
    ],
)
def test_instructions_name_file_and_line_of_a_bad_row(row: Any, found: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(DataError) as caught:
        load_rows(path, GOOD, "", row, GOOD)
    assert caught.value.found.startswith("1 of 3 rows cannot be used")
    assert f"{path}, line 3: " in caught.value.found
    assert found in caught.value.found


def test_instructions_list_all_bad_rows_of_all_files(tmp_path: Path) -> None:
    val = write_rows(tmp_path / "val.jsonl", {"prompt": "a"})
    with pytest.raises(NanolmError) as caught:
        load_rows(tmp_path / "train.jsonl", GOOD, *["{}"] * (MAX_SHOWN + 5), val_path=str(val))
    message = str(caught.value)
    assert f"{MAX_SHOWN + 5} of {MAX_SHOWN + 6} rows" in message
    assert "and 5 more" in message
    assert f"{val}, line 1: there is no field 'response'" in message


def test_instructions_refuse_a_huge_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanolm.data.corpus.instructions.MAX_CHARACTERS", 1000)
    with pytest.raises(DataError, match=r"line 2: the line has 1,0.. characters, and at most 1,000 are supported"):
        load_rows(tmp_path / "rows.jsonl", GOOD, {"prompt": "a" * 1000, "response": "b"})


def test_instructions_fields_and_nuls_are_configurable(tmp_path: Path) -> None:
    corpus = load_rows(
        tmp_path / "rows.jsonl",
        *[{"instruction": "\0\0\0\0", "output": "yes"}] * 3,
        prompt_field="instruction",
        response_field="output",
        nul=Nul.allow,
    )
    assert "\0\0\0\0" in next(corpus.documents("train"))


def test_fingerprint_depends_on_what_is_scored(tmp_path: Path) -> None:
    first = load_rows(tmp_path / "first.jsonl", *[talk("a", "b<|end|>\n<|user|>c\n<|assistant|>d")] * 3)
    second = load_rows(tmp_path / "second.jsonl", *[talk("a", "b", "c", "d")] * 3)
    assert "".join(first.documents("train")) == "".join(second.documents("train"))
    assert first.fingerprint != second.fingerprint
