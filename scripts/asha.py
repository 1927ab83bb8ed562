"""Does ASHA find the best of a grid, and for how many of its tokens?

    python scripts/asha.py dataset.path=tinyshakespeare.txt --folder outputs/asha

Trains all 27 points of a grid on tiny Shakespeare (3 learning rates, 3 widths, 3 depths), then searches the same grid
with hydra.sweeper.pruner=asha, once for each of several orders of its points; one search is killed half-way and goes
on. Which runs a search gives up follows from the losses of the grid, so that any number of further orders is worked out
from the grid alone; that this is right is checked against the real searches.

Exit status 1: a search missed the best loss by more than 0.01 nats, took more than 40% of the grid's tokens, or is not
what its forecast says. What it ended with is kept in docs/sweeps.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from nanolm.sweeps.optuna.pruners import first_rung, is_eliminated, rung_steps
from nanolm.sweeps.optuna.samplers import shuffled_grid
from nanolm.sweeps.optuna.settings import OptunaConfig
from nanolm.sweeps.optuna.space import Choice

MAX_STEPS = 270
MIN_STEPS = 30
SPACE = (
    Choice("optimizer.lr", ("0.001", "0.003", "0.01")),
    Choice("size.d_model", ("16", "32", "64")),
    Choice("size.n_layers", ("1", "2", "3")),
)
LINE = (
    "dataset=tiny_shakespeare",
    "tokenizer=char",
    "model=gpt",
    "size.n_heads=2",
    "size.context_length=32",
    f"trainer.max_steps={MAX_STEPS}",
    f"trainer.eval_every={MIN_STEPS}",
    "trainer.batch_size=32",
    "trainer.sample_tokens=0",
    "trainer.device=cpu",
    "logger=none",
    *(f"{part.key}={','.join(part.options)}" for part in SPACE),
)
# What the search may miss the best of the grid by, in nats a token, and of its tokens the share that it may take.
GAP = 0.01
SHARE = 0.4

Point = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search of the grid came to: the share of its tokens, and by how much it missed its best loss."""

    share: float
    gap: float


def main() -> int:
    """Trains, searches, prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="more settings for every run")
    parser.add_argument("--folder", type=Path, default=Path("outputs/asha"))
    parser.add_argument("--grid", type=Path, help="a folder where the grid has been trained already")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="orders that are searched for real")
    parser.add_argument("--forecasts", type=int, default=1000, help="orders that are worked out (1000)")
    options = parser.parse_args()

    grid = options.grid or options.folder / "grid"
    if options.grid is None:
        run_line(*options.overrides, f"hydra.sweep.dir={grid}")
    curves = curves_of(grid)
    points = len(SPACE[0].options) * len(SPACE[1].options) * len(SPACE[2].options)
    assert len(curves) == points, f"{grid} holds {len(curves)} runs of the grid's {points}"
    assert all(max(curve) == MAX_STEPS for curve in curves.values()), f"{grid} holds runs that are not complete"
    best = min(curves, key=lambda point: min(curves[point].values()))
    print(f"grid: {len(curves)} runs, best {min(curves[best].values()):.4f} at {' '.join(best)}")

    is_right = True
    for place, seed in enumerate(options.seeds):
        folder = options.folder / f"search{seed}"
        words = [*options.overrides, f"hydra.sweep.dir={folder}", *search_words(seed)]
        if place == 0:
            kill_half_way(words, folder, round(forecast(curves, seed).share * len(curves) * MAX_STEPS / 2))
        run_line(*words)
        real, expected = measure(curves_of(folder), curves), forecast(curves, seed)
        how = "killed half-way and continued" if place == 0 else "at a stretch"
        print(f"order {seed}, {how}: {real.share:.1%} of the tokens, {real.gap:.4f} nats above the best")
        is_right &= real.gap <= GAP and real.share <= SHARE and real == expected
        if real != expected:
            print(f"  and not {expected.share:.1%} and {expected.gap:.4f}, as the grid says", file=sys.stderr)

    searches = [forecast(curves, seed) for seed in range(options.forecasts)]
    shares = sorted(search.share for search in searches)
    hits = sum(search.gap <= GAP for search in searches) / len(searches)
    within = sum(search.gap <= GAP and search.share <= SHARE for search in searches) / len(searches)
    print(
        f"{len(searches)} orders worked out: {statistics.mean(shares):.1%} of the tokens on average, "
        f"{shares[len(shares) // 20]:.1%} to {shares[-len(shares) // 20]:.1%} in nine of ten, "
        f"{shares[-1]:.1%} at most; "
        f"{hits:.1%} come within {GAP} nats, {within:.1%} for at most {SHARE:.0%} of the tokens"
    )
    return 0 if is_right else 1


def search_words(seed: int) -> list[str]:
    """What makes a search of the line."""
    return [
        "hydra/sweeper=optuna",
        "hydra.sweeper.sampler=grid",
        "hydra.sweeper.pruner=asha",
        f"hydra.sweeper.min_steps={MIN_STEPS}",
        f"hydra.sweeper.seed={seed}",
    ]


def run_line(*words: str) -> None:
    """`nanolm train -m` with these words, to its end."""
    subprocess.run(
        [sys.executable, "-m", "nanolm", "train", "-m", *LINE, *words], check=True, stdout=subprocess.DEVNULL
    )


def kill_half_way(words: list[str], folder: Path, steps: int) -> None:
    """The same, killed with all its processes when the runs have made so many steps."""
    command = [sys.executable, "-m", "nanolm", "train", "-m", *LINE, *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and sum(max(curve, default=0) for curve in curves_of(folder).values()) < steps:
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def curves_of(folder: Path) -> dict[Point, dict[int, float]]:
    """The validation losses of the runs in a folder by step, by what they differ in."""
    from nanolm.config.fields import flat
    from nanolm.config.yaml_io import load_yaml
    from nanolm.runs.directory import RunDirectory
    from nanolm.runs.metrics import VAL, val_losses

    found = {}
    for path in folder.glob("*/config.yaml"):
        settings = flat(load_yaml(path))
        found[tuple(f"{settings[part.key]:g}" for part in SPACE)] = val_losses(
            RunDirectory(path.parent).read_metrics(VAL)
        )
    return found


def forecast(curves: Mapping[Point, Mapping[int, float]], seed: int) -> Search:
    """What a search in the order of a seed comes to, from the losses of the whole grid."""
    settings = OptunaConfig(pruner="asha", min_steps=MIN_STEPS)
    rungs = rung_steps(first_rung(settings, MAX_STEPS), MAX_STEPS, settings.reduction_factor)
    trained: dict[Point, dict[int, float]] = {}
    for values in shuffled_grid(SPACE, seed):
        point = tuple(str(values[part.key]) for part in SPACE)
        losses: dict[int, float] = {}
        for step, loss in curves[point].items():
            losses[step] = loss
            if step < MAX_STEPS and is_eliminated(losses, list(trained.values()), rungs, settings.reduction_factor):
                break
        trained[point] = losses
    return measure(trained, curves)


def measure(trained: Mapping[Point, Mapping[int, float]], curves: Mapping[Point, Mapping[int, float]]) -> Search:
    """A search against its grid. A step has the same number of tokens in every run."""
    steps = sum(max(losses) for losses in trained.values())
    found = min(min(losses.values()) for losses in trained.values())
    best = min(min(losses.values()) for losses in curves.values())
    return Search(steps / (MAX_STEPS * len(curves)), found - best)


if __name__ == "__main__":
    sys.exit(main())
