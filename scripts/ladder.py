"""Train every rung of the ladder from bigram to GPT with several seeds, and compare with published losses.

Completed runs are kept and interrupted ones are resumed, so that the script can be stopped and restarted at any time.
Results are in docs/ladder.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from nanolm.inference.evaluate import evaluate
from nanolm.inference.load import load_run
from nanolm.runs.directory import RunDirectory

# Published training and validation losses of each rung, in nats per character.
RUNGS: dict[str, tuple[float | None, float | None]] = {
    "bigram": (2.4738, 2.4911),
    "bigram_positions": (None, None),
    "mlp": (None, None),
    "rnn": (None, None),
    "gru": (None, None),
    "lstm": (None, None),
    "uniform_average": (None, None),
    "single_head": (2.3321, 2.3698),
    "multi_head": (None, None),
    "feed_forward": (None, None),
    "blocks": (None, None),
    "residual": (None, None),
    "layer_norm": (None, None),
    "dropout": (None, None),
    "ngram_gpt": (None, None),
}
# 10.8M parameters and 82M characters take hours on a CPU.
LARGE = ("scaled_up",)
# Order and smoothing of n-gram models of the same text.
NGRAMS = {"2-gram": ("2", "add_k"), "5-gram": ("5", "kneser_ney")}


def main() -> None:
    """Train missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rungs", nargs="+", choices=[*RUNGS, *LARGE], default=list(RUNGS))
    parser.add_argument("--folder", type=Path, default=Path("outputs/ladder"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs, one core each")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("overrides", nargs="*", help="overrides of every run, such as dataset.path=tinyshakespeare.txt")
    options = parser.parse_args()
    overrides_by_folder = {
        options.folder / f"{rung}-seed{seed}": [f"experiment=ladder/{rung}", f"seed={seed}"]
        for rung in options.rungs
        for seed in options.seeds
    }
    for name, (order, smoothing) in NGRAMS.items():
        overrides_by_folder[options.folder / name] = [
            "experiment=ladder/bigram", "model=ngram", f"model.order={order}", f"model.smoothing={smoothing}",
            "size.context_length=64",
        ]  # fmt: skip
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [
            pool.submit(train, folder, [*overrides, *options.overrides])
            for folder, overrides in overrides_by_folder.items()
        ]
        for job in tqdm(jobs, desc="runs", disable=not sys.stderr.isatty()):
            job.result()
    rungs = [results(rung, [options.folder / f"{rung}-seed{seed}" for seed in options.seeds]) for rung in options.rungs]
    rungs += [results(name, [options.folder / name]) for name in NGRAMS]
    if options.json:
        print(json.dumps(rungs, indent=2))
    else:
        print_table(rungs)


def train(folder: Path, overrides: list[str]) -> None:
    """Train or resume a run, unless it is completed."""
    if RunDirectory(folder).read_summary().status == "completed":
        return
    exists = (folder / "config.yaml").is_file()
    arguments = [f"resume={folder}"] if exists else [*overrides, f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "nanolm", "train", *arguments, "logger=none", "trainer.device=cpu"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def results(name: str, folders: list[Path]) -> dict[str, Any]:
    """Return the exact losses of the last weights on both splits, for each seed of a rung."""
    train_losses, val_losses = [], []
    for folder in folders:
        loaded = load_run(str(folder), "last", "cpu")
        train_losses.append(evaluate(loaded, "train")["loss"])
        val_losses.append(loaded.run.read_summary().final_val_loss)
    return {
        "rung": name,
        "parameters": loaded.run.read_summary().parameters,
        "seeds": len(folders),
        "train": train_losses,
        "val": val_losses,
        "published": RUNGS.get(name, (None, None)),
    }


def print_table(rungs: list[dict[str, Any]]) -> None:
    """Print the mean, minimum and maximum over the seeds."""
    table = Table(box=SIMPLE_HEAD, title="nats per character, last weights", title_justify="left")
    table.add_column("rung")
    for column in ("parameters", "seeds", "train", "val", "min", "max", "published train", "val"):
        table.add_column(column, justify="right")
    for rung in rungs:
        table.add_row(
            rung["rung"],
            f"{rung['parameters']:,}",
            str(rung["seeds"]),
            f"{statistics.mean(rung['train']):.4f}",
            f"{statistics.mean(rung['val']):.4f}",
            f"{min(rung['val']):.4f}",
            f"{max(rung['val']):.4f}",
            *("" if loss is None else f"{loss:.4f}" for loss in rung["published"]),
        )
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    main()
