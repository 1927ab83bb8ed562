"""The ladder from the bigram up: trains every rung with every seed, and sets it beside what is published for it.

Runs that are finished are kept, those that were cut off go on: the study can be stopped and started as one likes.
What it ended with is kept in docs/ladder.md.
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

# Each rung, and the losses that are published for it (training and validation, nats a character).
RUNGS: dict[str, tuple[float | None, float | None]] = {
    "bigram": (2.4738, 2.4911),
    "bigram_positions": (None, None),
    "uniform_average": (None, None),
    "single_head": (2.3321, 2.3698),
    "multi_head": (None, None),
    "feed_forward": (None, None),
    "blocks": (None, None),
    "residual": (None, None),
    "layer_norm": (None, None),
    "dropout": (None, None),
}
# 10.8M parameters on 82M characters: hours on a CPU.
LARGE = ("scaled_up",)
# Counted on the same text: what a table of pairs can reach, and how far counting goes.
COUNTED = {"counted pairs": ("2", "add_k"), "counted, 5 characters": ("5", "kneser_ney")}


def main() -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rungs", nargs="+", choices=[*RUNGS, *LARGE], default=list(RUNGS))
    parser.add_argument("--folder", type=Path, default=Path("outputs/ladder"), help="where the runs are")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, a core each")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("overrides", nargs="*", help="more for every line, such as dataset.path=tinyshakespeare.txt")
    options = parser.parse_args()
    lines = {
        options.folder / f"{rung}-seed{seed}": [f"experiment=ladder/{rung}", f"seed={seed}"]
        for rung in options.rungs
        for seed in options.seeds
    }
    for name, (order, smoothing) in COUNTED.items():
        lines[options.folder / name.replace(", ", "-").replace(" ", "-")] = [
            "experiment=ladder/bigram", "model=ngram", f"model.order={order}", f"model.smoothing={smoothing}",
            "size.context_length=64",
        ]  # fmt: skip
    with ThreadPoolExecutor(options.jobs) as pool:
        work = [pool.submit(train, folder, [*line, *options.overrides]) for folder, line in lines.items()]
        for job in tqdm(work, desc="runs", disable=not sys.stderr.isatty()):
            job.result()
    rungs = [figures(rung, [options.folder / f"{rung}-seed{seed}" for seed in options.seeds]) for rung in options.rungs]
    rungs += [figures(name, [options.folder / name.replace(", ", "-").replace(" ", "-")]) for name in COUNTED]
    if options.json:
        print(json.dumps(rungs, indent=2))
    else:
        show(rungs)


def train(folder: Path, line: list[str]) -> None:
    """Trains one run, or goes on with it, unless it is finished."""
    if RunDirectory(folder).read_summary().status == "completed":
        return
    begun = (folder / "config.yaml").is_file()
    words = [f"resume={folder}"] if begun else [*line, f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "nanolm", "train", *words, "logger=none", "trainer.device=cpu"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def figures(name: str, folders: list[Path]) -> dict[str, Any]:
    """Losses of a rung over its seeds: exact over both splits, of the last weights."""
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


def show(rungs: list[dict[str, Any]]) -> None:
    """The table: mean and spread (the lowest and the highest) over the seeds."""
    table = Table(box=SIMPLE_HEAD, title="nats a character, of the last weights", title_justify="left")
    table.add_column("rung")
    for column in ("parameters", "seeds", "train", "val", "lowest", "highest", "published train", "val"):
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
            *("" if figure is None else f"{figure:.4f}" for figure in rung["published"]),
        )
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    main()
