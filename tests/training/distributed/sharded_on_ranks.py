"""One rank of several: prepares a sharded run in bf16 and prints what this rank holds, as JSON.

python -m tests.training.distributed.sharded_on_ranks TEXT FOLDER         with the environment that torchrun gives
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import nn

from nanolm.config.trainer import TrainerConfig
from nanolm.model.build import build
from nanolm.runs.directory import RunDirectory
from nanolm.training import setup
from nanolm.training.distributed.parallel import local_shards
from nanolm.training.distributed.ranks import process_group
from nanolm.training.step import micro_batches
from tests.helpers import SMALL, make_config


def main() -> None:
    text, folder = sys.argv[1:]
    built_on = []

    def build_and_note(*arguments: Any) -> nn.Module:
        model = build(*arguments)
        built_on.append(next(model.parameters()).device.type)
        return model

    setup.build = build_and_note
    words = (*SMALL, "dataset=text", f"dataset.path={text}", "trainer.parallel=fsdp", "trainer.precision=bf16")
    with process_group(TrainerConfig(device="cpu", rank_timeout=60)) as ranks:
        prepared = setup.prepare(make_config(*words), RunDirectory(folder), ranks)
        model = prepared.state.model
        shapes = {tuple(sorted(parameter.shape)) for parameter in model.parameters() if parameter.dim() > 1}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dtype is torch.bfloat16 and tuple(sorted(tensor.shape)) in shapes:
                kept[id(tensor.untyped_storage())] = tensor.untyped_storage()
            return tensor

        (batch, *_), _ = micro_batches(prepared.config, prepared.streams["train"], 0, prepared.state.device, ranks)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            prepared.state.number_format.autocast(),
        ):
            loss = prepared.loss_fn(prepared.forward, *batch, "mean")
        # FSDP frees the storage of what it gathered, and autocast that of its copies only after the backward pass.
        kept_weight_bytes = sum(storage.nbytes() for storage in kept.values())
        loss.backward()
        found = {
            "built_on": built_on,
            "whole": sum(parameter.numel() for parameter in model.parameters()),
            "own": sum(part.numel() for part in local_shards(list(model.parameters()))),
            "kept_weight_bytes": kept_weight_bytes,
            "gradient_dtypes": sorted({str(parameter.grad.dtype) for parameter in model.parameters()}),
        }
        print(json.dumps(found))
        del prepared, model, batch, loss


if __name__ == "__main__":
    main()
