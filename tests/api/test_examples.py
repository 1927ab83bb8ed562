"""The examples in the documentation of the Python API run as they are printed."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import nanolm
from tests.helpers import REPOSITORY

PAGE = REPOSITORY / "docs" / "python_api.md"
MODULES = ("nanolm.api.analysis", "nanolm.api.run", "nanolm.api.training")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF


def check(test: doctest.DocTest) -> None:
    """Run examples, and fail with the differences."""
    output: list[str] = []
    failed, n_run = doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=output.append)
    assert n_run
    assert not failed, "".join(output)


def examples_of(module: str) -> list[doctest.DocTest]:
    """Return the docstrings of a module that have examples."""
    found = doctest.DocTestFinder().find(importlib.import_module(module), globs={"nanolm": nanolm})
    return [test for test in found if test.examples]


@pytest.mark.slow
def test_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    examples = "\n".join(re.findall(r"```pycon\n(.*?)```", text, flags=re.DOTALL))
    check(doctest.DocTestParser().get_doctest(examples, {}, PAGE.name, str(PAGE), 0))


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tests = examples_of(module)
    assert tests
    for test in tests:
        check(test)


def test_page_names_every_function() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in nanolm.__all__ if name[0].islower() and f"nanolm.{name}" not in text] == []
