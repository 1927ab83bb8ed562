"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.helpers import REPOSITORY, Nanolm

pytest_plugins = ["tests.browser", "tests.run_fixtures"]

# Without a deadline, a busy machine fails no test.
hypothesis.settings.register_profile("nanolm", deadline=None)
hypothesis.settings.load_profile("nanolm")


# Slow test files start first, in this order, so that the last ones are short and all cores finish together.
SLOWEST = ("training/distributed", "system/", "sweeps/", "report/", "cli/test_train", "cli/test_wandb", "training/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move slow test files to the front."""

    def position(item: pytest.Item) -> int:
        path = item.path.relative_to(REPOSITORY / "tests").as_posix()
        return next((number for number, name in enumerate(SLOWEST) if path.startswith(name)), len(SLOWEST))

    items.sort(key=position)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with tinyshakespeare.txt and gpt2/: $NANOLM_TEST_DATA, or shared/data in the folder above."""
    folder = Path(os.environ.get("NANOLM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set NANOLM_TEST_DATA to a folder with tinyshakespeare.txt and gpt2/")
    return folder


@pytest.fixture(scope="session")
def shakespeare(data_folder: Path) -> Path:
    path = data_folder / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the test session a cache separate from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOLM_CACHE", str(folder))
        yield folder


@pytest.fixture
def small_text(tmp_path: Path) -> Path:
    """A few thousand characters of regular text."""
    path = tmp_path / "small.txt"
    lines = (f"{n} and {n + 1} make {2 * n + 1}, so that {n % 7} is left over.\n" for n in range(200))
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def nanolm(tmp_path: Path) -> Nanolm:
    """The nanolm command in an empty folder, with an empty cache."""
    folder = tmp_path / "here"
    folder.mkdir()
    return Nanolm(folder, tmp_path / "cache")


@pytest.fixture
def no_wandb_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove all wandb credentials and settings from the environment."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
