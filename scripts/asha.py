"""Measure how reliably ASHA finds the best run of a grid, and with what share of its tokens.

    python scripts/asha.py dataset.path=tinyshakespeare.txt --folder outputs/asha

The script trains all 27 points of a grid on tiny Shakespeare (3 learning rates, 3 widths, 3 depths), then searches the
same grid with hydra.sweeper.pruner=asha for several orders of its points; one search is killed halfway and resumed. The
runs that a search prunes follow from the losses of the grid, so that searches in many more orders are simulated from
the grid alone, and the simulation is compared with the real searches.

The exit status is 1 if a search misses the best loss by more than 0.01 nats, uses more than 40% of the tokens of the
grid, or differs from its simulation. Results are in docs/sweeps.md.
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
OVERRIDES = (
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
# Limits of a search: nats per token above the best loss of the grid, and share of the grid's tokens.
MAX_GAP = 0.01
MAX_SHARE = 0.4

Point = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Search:
    """Result of a search: share of the grid's tokens, and nats above its best loss."""

    share: float
    gap: float


def main() -> int:
    """Train the grid, search it, print the results and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of every run")
    parser.add_argument("--folder", type=Path, default=Path("outputs/asha"))
    parser.add_argument("--grid", type=Path, help="folder of a grid that was trained before")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of the orders of real searches")
    parser.add_argument("--simulations", type=int, default=1000, help="number of simulated searches (1000)")
    options = parser.parse_args()

    grid = options.grid or options.folder / "grid"
    if options.grid is None:
        run_sweep(*options.overrides, f"hydra.sweep.dir={grid}")
    curves = curves_of(grid)
    points = len(SPACE[0].options) * len(SPACE[1].options) * len(SPACE[2].options)
    assert len(curves) == points, f"{grid} has {len(curves)} of {points} runs"
    assert all(max(curve) == MAX_STEPS for curve in curves.values()), f"{grid} has incomplete runs"
    best = min(curves, key=lambda point: min(curves[point].values()))
    print(f"grid: {len(curves)} runs, best {min(curves[best].values()):.4f} at {' '.join(best)}")

    is_ok = True
    for place, seed in enumerate(options.seeds):
        folder = options.folder / f"search{seed}"
        overrides = [*options.overrides, f"hydra.sweep.dir={folder}", *search_overrides(seed)]
        if place == 0:
            kill_halfway(overrides, folder, round(simulate(curves, seed).share * len(curves) * MAX_STEPS / 2))
        run_sweep(*overrides)
        real, expected = measure(curves_of(folder), curves), simulate(curves, seed)
        how = "killed halfway and resumed" if place == 0 else "without interruption"
        print(f"order {seed}, {how}: {real.share:.1%} of the tokens, {real.gap:.4f} nats above the best")
        is_ok &= real.gap <= MAX_GAP and real.share <= MAX_SHARE and real == expected
        if real != expected:
            print(f"  simulated: {expected.share:.1%}, {expected.gap:.4f} nats", file=sys.stderr)

    searches = [simulate(curves, seed) for seed in range(options.simulations)]
    shares = sorted(search.share for search in searches)
    hits = sum(search.gap <= MAX_GAP for search in searches) / len(searches)
    within = sum(search.gap <= MAX_GAP and search.share <= MAX_SHARE for search in searches) / len(searches)
    print(
        f"{len(searches)} searches simulated: {statistics.mean(shares):.1%} of the tokens on average, "
        f"{shares[len(shares) // 20]:.1%} to {shares[-len(shares) // 20]:.1%} in 90% of them, "
        f"{shares[-1]:.1%} at most; "
        f"{hits:.1%} are within {MAX_GAP} nats of the best, {within:.1%} with at most {MAX_SHARE:.0%} of the tokens"
    )
    return 0 if is_ok else 1


def search_overrides(seed: int) -> list[str]:
    """Return the overrides of an ASHA search."""
    return [
        "hydra/sweeper=optuna",
        "hydra.sweeper.sampler=grid",
        "hydra.sweeper.pruner=asha",
        f"hydra.sweeper.min_steps={MIN_STEPS}",
        f"hydra.sweeper.seed={seed}",
    ]


def run_sweep(*overrides: str) -> None:
    """Run `nanolm train -m` with overrides."""
    subprocess.run(
        [sys.executable, "-m", "nanolm", "train", "-m", *OVERRIDES, *overrides], check=True, stdout=subprocess.DEVNULL
    )


def kill_halfway(overrides: list[str], folder: Path, steps: int) -> None:
    """Run a sweep and kill its process group after a total number of steps."""
    command = [sys.executable, "-m", "nanolm", "train", "-m", *OVERRIDES, *overrides]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and sum(max(curve, default=0) for curve in curves_of(folder).values()) < steps:
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def curves_of(folder: Path) -> dict[Point, dict[int, float]]:
    """Read the validation losses by step of each run in a folder; keys are points of the grid."""
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


def simulate(curves: Mapping[Point, Mapping[int, float]], seed: int) -> Search:
    """Compute the result of a search, in the order of a seed, from the losses of the whole grid."""
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
    """Compare a search with its grid; a step has the same number of tokens in every run."""
    steps = sum(max(losses) for losses in trained.values())
    found = min(min(losses.values()) for losses in trained.values())
    best = min(min(losses.values()) for losses in curves.values())
    return Search(steps / (MAX_STEPS * len(curves)), found - best)


if __name__ == "__main__":
    sys.exit(main())
