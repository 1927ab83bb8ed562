"""What the tests share: real data where it is at hand, small configs, and the command as a user runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.helpers import REPOSITORY, Nanolm

pytest_plugins = ["tests.run_fixtures"]

# A machine that is slow for a moment fails no test.
hypothesis.settings.register_profile("nanolm", deadline=None)
hypothesis.settings.load_profile("nanolm")


# Files that take longest, in the order in which they are begun: the last ones are short, and no core waits for long.
LONGEST = ("training/test_distributed", "system/", "sweeps/", "report/", "test_cli", "test_wandb_verb", "training/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, the others as they were."""

    def rank(item: pytest.Item) -> int:
        place = item.path.relative_to(REPOSITORY / "tests").as_posix()
        return next((number for number, name in enumerate(LONGEST) if place.startswith(name)), len(LONGEST))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with tinyshakespeare.txt and gpt2/: $NANOLM_TEST_DATA, else shared/data beside the checkout."""
    folder = Path(os.environ.get("NANOLM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data: {folder} is not there; NANOLM_TEST_DATA may name a folder that has it")
    return folder


@pytest.fixture(scope="session")
def shakespeare(data_folder: Path) -> Path:
    """Tiny Shakespeare."""
    path = data_folder / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip(f"no tiny Shakespeare: {path} is not there")
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's cache."""
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
    """The command in an empty folder, with an empty cache."""
    folder = tmp_path / "here"
    folder.mkdir()
    return Nanolm(folder, tmp_path / "cache")


@pytest.fixture
def no_wandb_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No account of wandb is at hand, and the environment has no word for it."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
