import getpass
import socket
from pathlib import Path
from typing import Any

import pytest

from nanolm.runs.privacy import MAX_TEXT, plain, private


@pytest.fixture
def jane(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose name is part of paths."""
    monkeypatch.setenv("HOME", "/data/people/jane doe")
    monkeypatch.setattr("nanolm.runs.privacy._names", lambda: {"jane": "user", "crunch": "host"})


@pytest.mark.usefixtures("jane")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/people/jane doe/texts/book.txt", "~/texts/book.txt"),
        ("/data/people/jane doe", "~"),
        ("/data/people/jane doe2/book.txt", "book.txt"),
        ("/home/ben/book.txt", "book.txt"),
        ("/home/ben", "~"),
        ("/scratch/jane/*.txt", "*.txt"),
        ("file:///srv/jane/book.txt", "book.txt"),
        (r"C:\Users\Jane Doe\book.txt", "book.txt"),
        ("runs/jane/one", "runs/user/one"),
        ("crunch:/srv/x", "host:/srv/x"),
        ("No such file: '/home/ben a/my texts/book.txt'", "No such file: '~/my texts/book.txt'"),
        ("cannot read /srv/ben/book.txt: it is empty", "cannot read book.txt: it is empty"),
        ("https://jane:t0ken@example.org/a/b.txt?sig=t0ken", "https://example.org/a/b.txt"),
        ("https://example.org/a/b/c", "https://example.org/a/b/c"),
        ("data/book.txt", "data/book.txt"),
        ("jane", "jane"),
        ("and/or", "and/or"),
        ("/", "/"),
        (r"[\r\n/]*|\s+(?!\S)|\p{L}+", r"[\r\n/]*|\s+(?!\S)|\p{L}+"),
    ],
)
def test_private_text_names_no_person_machine_or_folder(text: str, expected: str) -> None:
    assert private({"a": [text]}) == {"a": [expected]}


def test_names_are_those_of_this_machine() -> None:
    assert private(f"a/{socket.gethostname()}/{getpass.getuser()}") == "a/host/user"
    assert private(str(Path.home() / "x" / "y")) == "~/x/y"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"_wandb": 1, "a": {"_type": "artifactVersion", "id": "x"}, 3: None}, {"a": {"id": "x"}, "3": None}),
        ("wandb-artifact://https://example.org/a/b/c", "wandb-artifact: //https://example.org/a/b/c"),
        ("https://me:secret@host@example.org/a?b=1", "https://example.org/a?b=1"),
        ("/home/jane/x", "/home/jane/x"),
        ((1, 2.5, True), [1, 2.5, True]),
        ("x" * 2 * MAX_TEXT, "x" * MAX_TEXT + "..."),
    ],
)
def test_plain_values_mean_nothing_to_wandb(value: Any, expected: Any) -> None:
    assert plain(value) == expected


@pytest.mark.parametrize("text", ["://" * 400_000, "'/" * 500_000, "/a" * 500_000, "/home/" * 200_000])
def test_hostile_texts_take_no_time(text: str) -> None:
    assert len(private(text)) <= MAX_TEXT + 3
