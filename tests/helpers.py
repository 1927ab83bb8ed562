"""Helpers shared by tests of several modules."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolm.compose import Bases
from nanolm.config.checks import check
from nanolm.config.dataset import DatasetConfig
from nanolm.config.mask import CausalConfig
from nanolm.config.optimizer import OptimizerConfig
from nanolm.config.run import Config
from nanolm.data import corpus as corpora
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens.stream import Stream
from nanolm.model.attention_backends import AttentionContext
from nanolm.runs.directory import RunDirectory
from nanolm.training import trainer
from nanolm.training.checkpoints import files as checkpoint
from tests.composition import compose_config
from tests.forks import Forked

REPOSITORY = Path(__file__).resolve().parent.parent


# Overrides of a model that trains in a moment.
SMALL = (
    "size.n_layers=2",
    "size.n_heads=2",
    "size.d_model=16",
    "size.context_length=16",
    "trainer.batch_size=4",
    "trainer.sample_tokens=0",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "logger=none",
)


# Overrides of a run that takes seconds, so that it can be killed at any point.
LONG_RUN = (
    *SMALL,
    "model.dropout=0.2",
    "trainer.max_steps=600",
    "trainer.save_every=50",
    "trainer.eval_every=100",
    "trainer.log_every=10",
    "dataset=text",
)

# Overrides of the runs of `resumes_exactly`.
RESUME_STEPS = 16
RESUME_OVERRIDES = (
    f"trainer.max_steps={RESUME_STEPS}",
    "trainer.eval_every=3",
    "trainer.save_every=5",
    "trainer.log_every=1",
    "trainer.gradient_accumulation=2",
    "model.dropout=0.3",
    "size.n_layers=1",
)

# Compositions that are reused by later tests.
BASES: Bases = {}


class Nanolm:
    """Runs the nanolm command in a separate folder and returns the completed process."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"},
            "NANOLM_CACHE": str(cache),
            "WANDB_MODE": "offline",
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, *arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [str(argument) for argument in arguments]
        if self._needs_new_interpreter(command):
            return subprocess.run(
                [sys.executable, "-m", "nanolm", *command],
                cwd=self.folder,
                env=self.environment,
                timeout=timeout,
                capture_output=True,
                text=True,
            )
        process = Forked(["nanolm", *command], self.folder, self.environment)
        try:
            output, errors = process.communicate(timeout)
        finally:
            process.kill()
        assert process.returncode is not None
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def start(self, *arguments: str) -> subprocess.Popen[str] | Forked:
        """Start the command in a new process group, which can be killed as a whole."""
        if not self._needs_new_interpreter(arguments):
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

    def _needs_new_interpreter(self, arguments: Sequence[str]) -> bool:
        """Return whether the environment differs in what Python and OpenMP read at startup, or there is a launcher."""
        has_launcher = any("hydra/launcher" in argument for argument in arguments)
        has_threads = self.environment.get("OMP_NUM_THREADS") != "1"
        return has_launcher or has_threads or self.environment.get("PYTHONPATH") != os.environ.get("PYTHONPATH")


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | Forked, seconds: float = 200) -> None:
    """Wait until a condition holds; fail if the process ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


def has_reached_step(run: RunDirectory, step: int) -> bool:
    """Return whether metrics.jsonl has a row of this step or a later one."""
    lines = run.metrics.read_text().splitlines()[:-1] if run.metrics.exists() else []
    return bool(lines) and json.loads(lines[-1])["step"] >= step


def kill_process_group(process: subprocess.Popen[str] | Forked) -> None:
    """Send SIGKILL to a process of `Nanolm.start` and its children."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def make_config(*overrides: str) -> Config:
    """Compose a config from overrides."""
    return compose_config(overrides, BASES)


def mistakes(*overrides: str) -> list[str]:
    """Compose overrides and return the mistakes that checking the settings finds."""
    return [problem.found for problem in check(make_config(*overrides))]


def small_config(text: Path, *overrides: str) -> Config:
    """Compose a config of a small model and a text file."""
    return make_config(*SMALL, "dataset=text", f"dataset.path={text}", *overrides)


def untimed_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl, without measured times."""
    timed = ("seconds", "tokens_per_second")
    parsed = (json.loads(line) for line in run.metrics.read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in timed} for row in parsed]


def final_state(run: RunDirectory) -> tuple[dict[str, torch.Tensor], Any]:
    """Load the weights and the training state of the latest checkpoint."""
    found, _ = checkpoint.newest(run.checkpoints)
    assert found is not None
    from safetensors.torch import load_file

    return load_file(found.path / checkpoint.WEIGHTS), found.load_state()


def is_same_state(a: Any, b: Any) -> bool:
    """Compare nested states bit by bit, without measured times."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        timed = ("seconds", "timed_seconds")
        return a.keys() == b.keys() and all(is_same_state(a[key], b[key]) for key in a if key not in timed)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same_state, a, b))
    return bool(a == b)


def mostly_slow(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """The values of a parameter, or tuples for several, of which all but the quick ones are marked slow."""
    slow = pytest.mark.slow
    return [
        value if value in quick else pytest.param(*value if isinstance(value, tuple) else (value,), marks=slow)
        for value in values
    ]


class sigterm_at_step:  # noqa: N801  a context manager
    """Sends SIGTERM to this process at the beginning of the given optimizer step, counted from 1."""

    def __init__(self, step: int) -> None:
        self.n_left = step
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        update = trainer.update

        def interrupted(*arguments: Any) -> Any:
            self.n_left -= 1
            if self.n_left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return update(*arguments)

        self.patch.setattr(trainer, "update", interrupted)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def resumes_exactly(text: Path, folder: Path, *overrides: str) -> bool:
    """Train in one go, and stopped and resumed halfway; return whether rows, weights and state are equal bit by bit."""
    config = small_config(text, *RESUME_OVERRIDES, *overrides)
    whole, resumed = RunDirectory(folder / "whole"), RunDirectory(folder / "resumed")
    for run in (whole, resumed):
        run.path.mkdir()
    trainer.train(config, whole)
    with sigterm_at_step(RESUME_STEPS // 2):
        trainer.train(config, resumed)
    assert resumed.read_summary().step == RESUME_STEPS // 2
    trainer.train(config, resumed)
    assert final_state(whole)[1]["scalars"]["step"] == RESUME_STEPS
    return untimed_rows(resumed) == untimed_rows(whole) and is_same_state(final_state(resumed), final_state(whole))


def randomize_weights(model: torch.nn.Module) -> None:
    """Draw every weight from N(0, 0.2), because some are initialized to zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


def causal_context(length: int) -> AttentionContext:
    """Return the context of causal attention over a whole text."""
    return AttentionContext(CausalConfig(), lambda: None, 0, length, None, None, torch.device("cpu"))


def text_config(path: Path, *overrides: str) -> Config:
    """Compose a config whose dataset is a text file, a folder or a glob."""
    return make_config("dataset=text", f"dataset.path='{path}'", *overrides)


def tokenize_text(
    path: Path, text: str, *overrides: str, report: Callable[[str], None] | None = None
) -> dict[str, Stream]:
    """Write a text to a file and tokenize it."""
    path.write_bytes(text.encode())
    return tokenize_config(text_config(path, *overrides), report)


def tokenize_config(config: Config, report: Callable[[str], None] | None = None) -> dict[str, Stream]:
    """Tokenize the dataset of a config."""
    corpus = corpora.load(config.dataset)
    return token_cache.tokenize(corpus, token_cache.fit_tokenizer(corpus, config), config, report)


def stream_folders(cache: Path) -> list[Path]:
    """List the folders of streams in a token cache, without those of fitted tokenizers."""
    return sorted(path for path in (cache / "streams").glob("[!.]*") if path.name != "tokenizers")


def temporary_files(folder: Path) -> list[str]:
    """List the names of temporary files below a folder."""
    return [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]


def make_optimizer_config(name: str, *overrides: str) -> OptimizerConfig:
    """Compose the config of an optimizer from overrides such as "lr=0.1"."""
    return make_config(f"optimizer={name}", *(f"optimizer.{override}" for override in overrides)).optimizer


def set_random_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def full_text(config: DatasetConfig) -> str:
    """The text of a dataset, all splits together."""
    return "".join(piece.text for piece in corpora.load(config).pieces())


def train_and_val(config: DatasetConfig) -> tuple[str, str]:
    """The texts of the two splits of a dataset without a test split."""
    loaded = corpora.load(config)
    assert loaded.splits == ("train", "val")
    return "".join(loaded.documents("train")), "".join(loaded.documents("val"))
