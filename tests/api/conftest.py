"""A run that the tests of the Python API share, trained through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run_fixtures import API_WORDS


@pytest.fixture
def words(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Return the words that all runs here have in common, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    return (*API_WORDS, f"dataset.path={text}")
