"""A config file of nanoGPT's train.py, which scores the validation split exactly at each of its evaluations.

train.py executes its config files before it uses its settings. So this one can set the seed, which train.py fixes, and
replace torch.save, which train.py calls after each evaluation, without changes to the checkout. It is passed after
config/train_shakespeare_char.py. race.py reads the lines that it prints.

Environment: RACE_SEED, the seed; RACE_SCRIPTS, the folder of this file.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.append(os.environ["RACE_SCRIPTS"])
from nanogpt_checkout import exact_loss

# So that torch.save is called after every evaluation but the first.
always_save_checkpoint = True

_seed_torch, _save_checkpoint = torch.manual_seed, torch.save
# Seconds of exact scoring, which nanoGPT itself does not do.
_scoring = [0.0]


def _seed(ignored):
    """Set the seed of the race instead of train.py's."""
    return _seed_torch(int(os.environ["RACE_SEED"]))


def _score(checkpoint, path):
    """Save the checkpoint, and print the step, the estimate and the exact loss of its weights."""
    _save_checkpoint(checkpoint, path)
    began = time.perf_counter()
    model = sys.modules["__main__"].raw_model
    settings = checkpoint["config"]
    tokens = np.fromfile(Path("data", settings["dataset"], "val.bin"), dtype=np.uint16)
    model.eval()
    loss = exact_loss(model, tokens, settings["block_size"])
    model.train()
    _scoring[0] += time.perf_counter() - began
    point = {
        "step": checkpoint["iter_num"],
        "loss": loss,
        "estimate": float(checkpoint["best_val_loss"]),
        "scoring": _scoring[0],
    }
    print("race", json.dumps(point), flush=True)


torch.manual_seed, torch.save = _seed, _score
