"""One rank of several: trains the runs that a JSON file lists, one after another, and prints how each ended.

    python -m tests.training.distributed.on_ranks JOBS.json         with the environment that torchrun gives

A job is a run directory and the settings of a line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from nanolm.config.run import Config
from nanolm.config.trainer import TrainerConfig
from nanolm.errors import NanolmError
from nanolm.registry import MODELS
from nanolm.runs.directory import RunDirectory
from nanolm.torchrun import rank
from nanolm.training.distributed.ranks import process_group
from nanolm.training.trainer import train
from tests.helpers import make_config


@MODELS.register("fails_on_one_rank")
class FailsOnOneRank(torch.nn.Embedding):
    """A bigram whose fifth loss on rank 1 is not a number."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__(vocab_size, vocab_size)
        self.calls = 0

    def forward(self, tokens_BxT: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        logits_BxTxV = super().forward(tokens_BxT)
        return logits_BxTxV * torch.nan if rank() == 1 and self.calls == 5 else logits_BxTxV


@MODELS.register("slower_on_one_rank")
class SlowerOnOneRank(torch.nn.Embedding):
    """A bigram whose steps take longer on rank 1."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__(vocab_size, vocab_size)

    def forward(self, tokens_BxT: torch.Tensor) -> torch.Tensor:
        if rank() == 1:
            torch.linalg.svd(torch.eye(100))
        return super().forward(tokens_BxT)


# Models of tests, which no configuration file has.
MODELS_OF_TESTS = ("fails_on_one_rank", "slower_on_one_rank")


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with process_group(TrainerConfig(device="cpu", rank_timeout=60)) as ranks:
        for folder, overrides in jobs:
            models = {f"model={name}": name for name in MODELS_OF_TESTS}
            config = make_config(*(word for word in overrides if word not in models))
            for word in models.keys() & set(overrides):
                config.model.name = models[word]
            try:
                summary = train(config, RunDirectory(folder), ranks=ranks).summary
                print(summary.status)
                if any(word.startswith("trainer.max_minutes=") for word in overrides):
                    print(summary.max_steps)
            except NanolmError as error:
                print(type(error).__name__)


if __name__ == "__main__":
    main()
