import io
import os
import shutil
import subprocess
import sys

import pytest

from nanolm import shell

NAMES = (
    "plain", "two words", "it's", 'a "name"', "a=1,b=2", "$HOME", "`id`", "naïve 東京", "#5 & (more); *", "back\\slash",
    "tab\tand\nline", "\x1b[31m", "-dash", "~home", "auto", "!history", os.fsdecode(b"\xff"), "\x9b1", "",
)  # fmt: skip


def test_shells_parse_quoted_arguments_to_the_original() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    line = shell.join("printf", "%s\\0", *NAMES)
    done = subprocess.run([bash, "-c", line], capture_output=True, timeout=60, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(name) for name in NAMES]
    assert line.isprintable()


def test_quote_escapes_characters_that_the_console_cannot_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "latin-1"))
    assert shell.quote("l'été – 東") == "$'l\\'été \\342\\200\\223 \\346\\235\\261'"


def test_path_argument_prefixes_ambiguous_paths() -> None:
    words = {name: shell.path_argument(name) for name in ("-dash", "~home", "'a'", "auto", "outputs/run", "/tmp/auto")}
    assert list(words.values()) == ["./-dash", "./~home", "./'a'", "./auto", "outputs/run", "/tmp/auto"]


def test_resume_and_generate_commands() -> None:
    assert (
        shell.resume_command("outputs/a b", "trainer.max_steps=8")
        == "nanolm train 'resume=outputs/a b' trainer.max_steps=8"
    )
    assert shell.generate_command("R", "The ", ["mine"]) == "nanolm generate R --plugins mine --prompt 'The '"
    assert shell.generate_command("R", "- item") == "nanolm generate R '--prompt=- item'"
