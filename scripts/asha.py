"""Measure how reliably ASHA finds the best run of a grid, and with what share of its tokens.

    python scripts/asha.py dataset.path=tinyshakespeare.txt --folder outputs/asha

The script trains all 27 points of a grid on tiny Shakespeare (3 learning rates, 3 widths, 3 depths), then searches the
same grid with hydra.sweeper.pruner=asha for several orders of its points; one search is killed halfway and resumed. The
runs that a search prunes follow from the losses of the grid, so that searches in many more orders are simulated from
the grid alone, and the simulation is compared with the real searches. With several workers, searches that start a trial
when another ends are compared with searches in batches; the duration of a run is simulated, by its training FLOPs.

The exit status is 1 if a search misses the best loss by more than 0.01 nats, uses more than 40% of the tokens of the
grid, or differs from its simulation. Results are in docs/sweeps.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
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
# Limit of a search in parallel: its time relative to one in batches.
MAX_TIME = 0.6

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
    parser.add_argument("--workers", type=int, default=4, help="number of workers of searches in parallel (4)")
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
    is_ok &= compare_with_batches(curves, durations_of(grid), options.workers, options.simulations)
    return 0 if is_ok else 1


def compare_with_batches(
    curves: Mapping[Point, Mapping[int, float]], durations: Mapping[Point, float], n_workers: int, n_searches: int
) -> bool:
    """Print the time of searches in parallel relative to those in batches; return whether it is within its limit."""
    best = min(curves, key=lambda point: min(curves[point].values()))
    ratios, totals, n_found = [], [], 0
    for seed in range(n_searches):
        ends, batch_ends = (
            simulate_workers(curves, durations, seed, n_workers, in_batches=in_batches) for in_batches in (False, True)
        )
        totals.append(max(ends.values()) / max(batch_ends.values()))
        # A search that prunes the best point ends without it.
        if all(trained[best] for trained in (ends, batch_ends)):
            ratios.append(ends[best] / batch_ends[best])
            n_found += 1
    ratio, total = statistics.mean(ratios), statistics.mean(totals)
    print(
        f"{n_workers} workers: {n_searches} searches take {total:.2f}x the time of those in batches on average, "
        f"and reach the best point after {ratio:.2f}x ({n_found} reach it both ways)"
    )
    return total <= MAX_TIME


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
    from nanolm.runs.directory import RunDirectory
    from nanolm.runs.metrics import VAL, val_losses

    return {point: val_losses(RunDirectory(path).read_metrics(VAL)) for point, path in runs_of(folder).items()}


def runs_of(folder: Path) -> dict[Point, Path]:
    """Find the runs in a folder; keys are points of the grid."""
    from nanolm.config.fields import flat
    from nanolm.config.yaml_io import load_yaml

    found = {}
    for path in folder.glob("*/config.yaml"):
        settings = flat(load_yaml(path))
        found[tuple(f"{settings[part.key]:g}" for part in SPACE)] = path.parent
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


def simulate_workers(
    curves: Mapping[Point, Mapping[int, float]],
    durations: Mapping[Point, float],
    seed: int,
    n_workers: int,
    *,
    in_batches: bool,
) -> dict[Point, float]:
    """Compute when each trial of a search ends; 0 for the best point of the grid if it was pruned.

    Args:
        durations: of the runs of the grid.
        in_batches: whether as many trials as there are workers start together, once all earlier ones have ended.
    """
    settings = OptunaConfig(pruner="asha", min_steps=MIN_STEPS)
    rungs = rung_steps(first_rung(settings, MAX_STEPS), MAX_STEPS, settings.reduction_factor)
    points = [tuple(str(values[part.key]) for part in SPACE) for values in shuffled_grid(SPACE, seed)]
    best = min(curves, key=lambda point: min(curves[point].values()))
    trained: dict[Point, dict[int, float]] = {}
    ends: dict[Point, float] = {}
    # The next evaluation of each trial that runs: its time, the place of the point, and the step.
    evaluations: list[tuple[float, int, int]] = []
    n_started, now = 0, 0.0

    def per_step(point: Point) -> float:
        return durations[point] / MAX_STEPS

    while n_started < len(points) or evaluations:
        if not (in_batches and evaluations):
            while n_started < len(points) and len(evaluations) < n_workers:
                point = points[n_started]
                trained[point] = {}
                first = min(curves[point])
                heapq.heappush(evaluations, (now + first * per_step(point), n_started, first))
                n_started += 1
        now, place, step = heapq.heappop(evaluations)
        point = points[place]
        losses = trained[point]
        losses[step] = curves[point][step]
        others = [other for key, other in trained.items() if key != point and other]
        is_over = step >= MAX_STEPS or is_eliminated(losses, others, rungs, settings.reduction_factor)
        if is_over:
            ends[point] = 0.0 if point == best and step < MAX_STEPS else now
        else:
            later = min(each for each in curves[point] if each > step)
            heapq.heappush(evaluations, (now + (later - step) * per_step(point), place, later))
    return ends


def durations_of(folder: Path) -> dict[Point, float]:
    """Read the training FLOPs per token of each run in a folder; keys are points of the grid."""
    from nanolm.runs.directory import RunDirectory

    return {
        point: float(RunDirectory(path).read_summary().flops_per_token or 0) for point, path in runs_of(folder).items()
    }


def measure(trained: Mapping[Point, Mapping[int, float]], curves: Mapping[Point, Mapping[int, float]]) -> Search:
    """Compare a search with its grid; a step has the same number of tokens in every run."""
    steps = sum(max(losses) for losses in trained.values())
    found = min(min(losses.values()) for losses in trained.values())
    best = min(min(losses.values()) for losses in curves.values())
    return Search(steps / (MAX_STEPS * len(curves)), found - best)


if __name__ == "__main__":
    sys.exit(main())
