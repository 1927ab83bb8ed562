"""Estimates of the loss over random batches, as nanoGPT reports them."""

from __future__ import annotations

import numpy as np
import torch

from nanolm.config.batch_schedule import Stage
from nanolm.config.mask import reads_documents
from nanolm.config.trainer import Sampling
from nanolm.data.batches import IGNORE_INDEX, draw
from nanolm.data.permutation import mix
from nanolm.training.precision import widest_dtype
from nanolm.training.setup import Setup
from nanolm.training.step import loss_function
from nanolm.training.validation import summed_loss

# Keep the batches of the splits apart from each other and from those of training.
_SPLIT_KEYS = {"train": 1, "val": 2}


@torch.no_grad()
def estimated_loss(setup: Setup, split: str, n_batches: int) -> float:
    """Estimate the loss over a split in nats per token from random batches, without dropout.

    The batches have trainer.batch_size rows of the whole context. They are a function of the seed, the split and the
    step, so that estimates never change training.

    Args:
        split: "train" or "val".
        n_batches: number of batches.
    """
    config, state, ranks, stream = setup.config, setup.state, setup.ranks, setup.streams[split]
    # A stream has rows when training draws rows.
    kind = config.trainer.sampling if stream.rows is not None else Sampling.windows
    stage = Stage(0, config.trainer.steps, config.trainer.batch_size, config.size.context_length)
    seed = int(mix(config.seed, _SPLIT_KEYS[split])[0])
    was_training = state.model.training
    state.model.eval()
    loss_fn = loss_function(state.model)
    total, n_scored = torch.zeros((), dtype=widest_dtype(state.device), device=state.device), 0
    for number in range(n_batches):
        batch = draw(
            kind,
            stream,
            stage,
            seed=seed,
            step=state.step * n_batches + number,
            rank=ranks.rank,
            world_size=ranks.world_size,
            with_documents=reads_documents(config),
        )
        tensors = (torch.from_numpy(array).to(state.device) for array in batch if array is not None)
        total += summed_loss(state.model, loss_fn, state.number_format, *tensors)
        n_scored += int(np.count_nonzero(batch.targets_BxT != IGNORE_INDEX))
    state.model.train(was_training)
    return ranks.sum(total.item()) / ranks.sum(n_scored)
