"""A checkout of nanoGPT (github.com/karpathy/nanoGPT): its files, its data, its model and the exact loss of it."""

from __future__ import annotations

import importlib.util
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

TRAIN_FILES = ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py")
# Of the README, "I only have a macbook (or other cheap computer)".
CPU_SETTINGS = {
    "device": "cpu",
    "compile": False,
    "eval_iters": 20,
    "log_interval": 1,
    "block_size": 64,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "max_iters": 2000,
    "lr_decay_iters": 2000,
    "dropout": 0.0,
}


class CheckoutError(Exception):
    """A folder is not a checkout of nanoGPT."""


def require_checkout(folder: Path, names: tuple[str, ...] = TRAIN_FILES) -> None:
    """Check that a folder has some files of nanoGPT.

    Raises:
        CheckoutError: files are missing.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        state = "is not a checkout of nanoGPT" if folder.is_dir() else "does not exist"
        raise CheckoutError(
            f"{folder} {state}: no {', no '.join(missing)}\n"
            "  hint:  git clone https://github.com/karpathy/nanoGPT, and pass its folder"
        )


def import_model(folder: Path) -> ModuleType:
    """Import model.py of a checkout.

    Raises:
        CheckoutError: there is no such file.
    """
    require_checkout(folder, ("model.py",))
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def copy_with_data(checkout: Path, folder: Path, text: str) -> None:
    """Copy what train.py needs into an empty folder, with the data of a text, so that the checkout stays unchanged."""
    for name in TRAIN_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout / name, folder / name)
    write_data(text, folder / "data" / "shakespeare_char")


def write_data(text: str, folder: Path) -> None:
    """Write train.bin, val.bin and meta.pkl of a text as nanoGPT's data/shakespeare_char/prepare.py does."""
    characters = sorted(set(text))
    tokens_by_character = {character: token for token, character in enumerate(characters)}
    tokens = np.array([tokens_by_character[character] for character in text], dtype=np.uint16)
    cut = int(len(text) * 0.9)
    folder.mkdir(parents=True, exist_ok=True)
    tokens[:cut].tofile(folder / "train.bin")
    tokens[cut:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": tokens_by_character}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


@torch.no_grad()
def exact_loss(model: nn.Module, tokens: np.ndarray, context_length: int, batch_size: int = 128) -> float:
    """Return the loss of nanoGPT's model over all tokens but the first, in nats per token.

    It is nanolm's validation loss: each token is scored once, in windows that advance by the context.

    Args:
        model: in eval mode; it returns logits_BxTxV and a loss for inputs and targets.
        tokens: at least context_length + 1.
        context_length: inputs per window.
        batch_size: windows per forward pass.
    """
    n_targets = len(tokens) - 1
    n_windows, n_rest = divmod(n_targets, context_length)
    starts = [n * context_length for n in range(n_windows)]
    batches = [(starts[n : n + batch_size], context_length) for n in range(0, n_windows, batch_size)]
    if n_rest:
        batches.append(([n_targets - context_length], n_rest))
    total = 0.0
    for batch, n_scored in batches:
        windows = np.stack([tokens[start : start + context_length + 1] for start in batch]).astype(np.int64)
        inputs_BxT, targets_BxT = (
            torch.from_numpy(windows[:, cut]).contiguous() for cut in (slice(-1), slice(1, None))
        )
        logits_BxTxV = model(inputs_BxT, targets_BxT)[0][:, -n_scored:]
        targets_BT = targets_BxT[:, -n_scored:].flatten()
        total += F.cross_entropy(logits_BxTxV.flatten(0, 1), targets_BT, reduction="sum").item()
    return total / n_targets
