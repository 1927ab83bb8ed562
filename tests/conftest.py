"""What the tests share: real data where it is at hand, small configs, and the command as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest

from nanolm.compose import Bases, compose_config
from nanolm.config import Config
from nanolm.runs.directory import RunDirectory
from tests.forks import Forked

# A machine that is slow for a moment fails no test.
hypothesis.settings.register_profile("nanolm", deadline=None)
hypothesis.settings.load_profile("nanolm")

REPOSITORY = Path(__file__).resolve().parent.parent

# A model that trains in no time, on text that every machine has.
SMALL = (
    "size.n_layers=2",
    "size.n_heads=2",
    "size.d_model=16",
    "size.context_length=16",
    "trainer.batch_size=4",
    "trainer.sample_tokens=0",
    "trainer.device=cpu",
    "logger=none",
)

# What the lines of tests have been composed from.
BASES: Bases = {}


class Nanolm:
    """Runs `nanolm` in a folder of its own, as a user would; the caller reads its output and status."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"},
            "NANOLM_CACHE": str(cache),
            "WANDB_MODE": "offline",
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, *arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in arguments]
        if self._needs_own_python(words):
            command = [sys.executable, "-m", "nanolm", *words]
            where = {"cwd": self.folder, "env": self.environment, "timeout": timeout}
            return subprocess.run(command, capture_output=True, text=True, **where)
        process = Forked(["nanolm", *words], self.folder, self.environment)
        try:
            output, errors = process.communicate(timeout)
        finally:
            process.kill()
        assert process.returncode is not None
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    def start(self, *arguments: str) -> subprocess.Popen[str] | Forked:
        """Begins the command in a group of processes of its own, so that its whole tree can be killed at once."""
        if not self._needs_own_python(arguments):
            return Forked(["nanolm", *arguments], self.folder, self.environment, is_leader=True)
        return subprocess.Popen(
            [sys.executable, "-m", "nanolm", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _needs_own_python(self, words: Sequence[str]) -> bool:
        """Whether something is different that Python and OpenMP read when they start, or a launcher starts others."""
        starts_others = any("hydra/launcher" in word for word in words)
        has_threads = self.environment.get("OMP_NUM_THREADS") != "1"
        return starts_others or has_threads or self.environment.get("PYTHONPATH") != os.environ.get("PYTHONPATH")


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[str] | Forked, seconds: float = 200) -> None:
    """Returns when it is so; the process must not end before."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.005)


def has_row(run: RunDirectory, step: int) -> bool:
    """Whether metrics.jsonl has come to that step."""
    lines = run.metrics.read_text().splitlines()[:-1] if run.metrics.exists() else []
    return bool(lines) and json.loads(lines[-1])["step"] >= step


def kill_tree(process: subprocess.Popen[str] | Forked) -> None:
    """SIGKILL to what `Nanolm.start` began and all that it began."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


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


def config_of(*overrides: str) -> Config:
    """The settings of a line."""
    return compose_config(overrides, BASES)


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
