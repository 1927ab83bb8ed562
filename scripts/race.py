"""Race nanolm against nanoGPT on tiny Shakespeare: time and tokens to a validation loss, and the loss at the budget.

    python scripts/race.py --nanogpt CHECKOUT            all runs, three seeds; writes docs/race.md, .json and a picture
    python scripts/race.py --steps 40 --seeds 1          a trial, with budgets of 40 steps
    python scripts/race.py --only NAME --keep            one of the runs; the results of the others are kept

Each run is a new process that trains from nothing with an empty cache; its clock starts with the process, so that
imports, tokenization, compilation and evaluations count. nanoGPT trains by its own train.py with the settings of its
README; its exact losses, which it does not compute itself, do not count. The runs of a seed follow each other directly,
in the opposite order for every second seed. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import race_report
from nanogpt_checkout import CPU_SETTINGS, CheckoutError, copy_with_data, require_checkout
from race_report import NANOGPT, Point, Result

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = Path(__file__).resolve().parent

# The validation loss that nanoGPT's CPU configuration is known for, and its budget in steps of 12 x 64 tokens.
TARGET = 1.886
BUDGET = int(CPU_SETTINGS["max_iters"])
TOKENS_PER_STEP = int(CPU_SETTINGS["batch_size"]) * int(CPU_SETTINGS["block_size"])
# Each experiment, and whether it ends when the target is reached.
EXPERIMENTS = {
    "nanogpt_cpu": False,
    "shakespeare_cpu": False,
    "shakespeare_ngram": False,
    "shakespeare_sprint": True,
    "shakespeare_ngram_sprint": True,
}
# Facts in which the results that are kept must agree with new ones.
SAME = ("processor", "cores", "threads", "torch")
DATE, COMMIT = "date", "commit of nanolm"


class RunFailedError(Exception):
    """A process of the race failed."""


@contextlib.contextmanager
def lines_of(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[Iterator[tuple[float, str]]]:
    """Run a command, and yield its lines of output, each with the seconds since its start; it ends with the context."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    output: list[str] = []

    def lines() -> Iterator[tuple[float, str]]:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            yield time.perf_counter() - began, line
        if process.wait():
            raise RunFailedError(
                f"{' '.join(command)}\nended with status {process.returncode}:\n{''.join(output[-20:])}"
            )

    try:
        yield lines()
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def run_nanogpt(checkout: Path, text: str, seed: int, steps: int) -> Iterator[Point]:
    """Train by train.py of a checkout, and yield its evaluations until the budget."""
    settings = CPU_SETTINGS | {"eval_interval": eval_every(steps), "max_iters": steps, "lr_decay_iters": steps}
    if steps != BUDGET:
        settings["warmup_iters"] = steps // 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_with_data(checkout, folder, text)
        command = [
            sys.executable,
            "train.py",
            "config/train_shakespeare_char.py",
            str(SCRIPTS / "nanogpt_hooks.py"),
            *(f"--{key}={value}" for key, value in settings.items()),
        ]
        environment = {"RACE_SEED": str(seed), "RACE_SCRIPTS": str(SCRIPTS)}
        with lines_of(command, folder, environment) as lines:
            for seconds, line in lines:
                if line.startswith("race "):
                    found = json.loads(line.removeprefix("race "))
                    step = found["step"]
                    passed = seconds - found["scoring"]
                    yield Point(step, step * TOKENS_PER_STEP, passed, found["loss"], found["estimate"])
                    if step >= steps:
                        return


def run_nanolm(experiment: str, text_file: Path, seed: int, steps: int) -> Iterator[Point]:
    """Train an experiment by `nanolm train`, and yield its evaluations."""
    from nanolm.runs.directory import RunDirectory
    from nanolm.runs.metrics import VAL

    shorter = []
    if steps != BUDGET:
        length = min(steps, budget_of(experiment))
        shorter = [f"trainer.max_steps={length}", f"trainer.eval_every={eval_every(length)}"]
    with tempfile.TemporaryDirectory() as name:
        run = RunDirectory(Path(name) / "run")
        command = [
            sys.executable, "-m", "nanolm", "train", f"experiment={experiment}", f"seed={seed}", *shorter,
            f"dataset.path={text_file}", "logger=none", "trainer.device=cpu", "trainer.sample_tokens=0",
            f"hydra.run.dir={run.path}",
        ]  # fmt: skip
        with lines_of(command, REPOSITORY, {"NANOLM_CACHE": str(Path(name) / "cache")}) as lines:
            for seconds, line in lines:
                if re.match(r"step +\d+ +val loss", line):
                    row = run.read_metrics(VAL)[-1]
                    assert row.loss is not None
                    assert row.tokens is not None
                    yield Point(row.step, row.tokens, seconds, row.loss, row.estimated_loss)


def budget_of(experiment: str) -> int:
    """Return the number of steps of an experiment."""
    from nanolm.compose import compose_command

    return compose_command([f"experiment={experiment}"]).config.trainer.max_steps


def eval_every(steps: int) -> int:
    """Return the interval of evaluations: nanoGPT's 250 steps, or only at the end where that is no multiple."""
    return 250 if steps % 250 == 0 else steps


def race(runners: dict[str, Callable[[int], Iterator[Point]]], seeds: Sequence[int], target: float) -> Iterator[Result]:
    """Run each runner with each seed, and yield each result as it is complete."""
    for number, seed in enumerate(seeds):
        for name, start in reversed(runners.items()) if number % 2 else runners.items():
            points = []
            with contextlib.closing(start(seed)) as evaluations:  # type: ignore[type-var]
                for point in evaluations:
                    points.append(point)
                    if EXPERIMENTS.get(name, False) and point.loss <= target:
                        break
            yield Result(name, seed, tuple(points))


def about(checkout: Path | None) -> dict[str, Any]:
    """Return facts about the machine and the versions."""
    import torch

    from nanolm import machine
    from nanolm.runs.provenance import git, versions

    commits = {"nanolm": git(REPOSITORY)} | ({} if checkout is None else {NANOGPT: git(checkout)})
    return {
        DATE: datetime.datetime.now().date().isoformat(),
        "processor": processor(),
        "cores": machine.n_cores(),
        "threads": torch.get_num_threads(),
        "load average before the race": round(os.getloadavg()[0], 2),
        **versions(),
        **{f"commit of {name}": commit.get("commit", "unknown") for name, commit in commits.items()},
    }


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the race; return 1 if a run failed, 2 if the race cannot start, 130 if it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nanogpt", type=Path, metavar="CHECKOUT", help="a checkout of nanoGPT; without it, it is left out"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (3)")
    parser.add_argument("--only", nargs="+", choices=[NANOGPT, *EXPERIMENTS], help="some of the runs (all)")
    parser.add_argument(
        "--keep", action="store_true", help="keep the results of other runs in the file, made on the same machine"
    )
    parser.add_argument("--text", type=Path, help="a copy of tiny Shakespeare (downloaded, or from nanolm's cache)")
    parser.add_argument("--target", type=float, default=TARGET, help=f"exact validation loss to reach ({TARGET})")
    parser.add_argument("--steps", type=int, default=BUDGET, help=f"budget in steps, shorter for a trial ({BUDGET})")
    parser.add_argument("-o", "--output", type=Path, default=REPOSITORY / "docs" / "race", help="path without suffix")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(REPOSITORY))
    from nanolm.compose import compose_command
    from nanolm.data import corpus as corpora
    from nanolm.errors import DataError, NanolmError

    problems = []
    if options.seeds < 1 or options.steps < 1:
        problems.append(f"--seeds ({options.seeds}) and --steps ({options.steps}) must be at least 1")
    names = options.only or [*([] if options.nanogpt is None else [NANOGPT]), *EXPERIMENTS]
    if NANOGPT in names and options.nanogpt is None:
        problems.append(f"--only {NANOGPT} needs its files\n  hint:  add --nanogpt CHECKOUT")
    if options.nanogpt is not None:
        try:
            require_checkout(options.nanogpt)
        except CheckoutError as error:
            problems.append(str(error))
    kept: list[Result] = []
    facts = about(options.nanogpt)
    if options.keep:
        try:
            earlier, kept = race_report.read(options.output)
            kept = [result for result in kept if result.run not in names]
            if differing := [name for name in SAME if earlier[name] != facts[name]]:
                problems.append(f"--keep: the results in {options.output}.json have another {', '.join(differing)}")
            facts = earlier | {f"{name}, of {', '.join(names)}": facts[name] for name in (DATE, COMMIT)}
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"--keep: {options.output}.json has no results of a race: {error}")
    try:
        path = [] if options.text is None else [f"dataset.path='{options.text.resolve()}'"]
        corpus = corpora.load(compose_command(["dataset=tiny_shakespeare", *path]).config.dataset)
        text = "".join(piece.text for piece in corpus.pieces())
        race_report.require_matplotlib()
        options.output.parent.mkdir(parents=True, exist_ok=True)
    except DataError as error:
        problems.append(f"{error.found}\n  hint:  pass a copy of tiny Shakespeare by --text FILE")
    except (NanolmError, OSError) as error:
        problems.append(str(error))
    if problems:
        print("\n".join(f"race: {problem}" for problem in problems), file=sys.stderr)
        return 2

    with tempfile.TemporaryDirectory() as folder:
        text_file = Path(folder) / "tinyshakespeare.txt"
        text_file.write_text(text, encoding="utf-8")
        runners: dict[str, Callable[[int], Iterator[Point]]] = {
            name: (lambda seed, name=name: run_nanolm(name, text_file, seed, options.steps)) for name in EXPERIMENTS
        }
        runners[NANOGPT] = lambda seed: run_nanogpt(options.nanogpt, text, seed, options.steps)
        if facts["load average before the race"] > facts["cores"] / 2:
            print("race: other programs use this machine, and slow the runs unequally", file=sys.stderr)
        results: list[Result] = []
        try:
            for result in race({name: runners[name] for name in names}, range(1, options.seeds + 1), options.target):
                results.append(result)
                print(result.describe(options.target), flush=True)
                # After each run, so that results survive a failure of the next.
                found = [*kept, *results]
                race_report.write(options.output, facts, found, options.target, options.steps * TOKENS_PER_STEP)
        except RunFailedError as error:
            print(f"race: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            where = f"; {options.output.with_suffix('.md')} has the runs before" if results else ""
            print(f"race: interrupted{where}", file=sys.stderr)
            return 130
    print(race_report.table([*kept, *results], options.target))
    print(f"written: {options.output.with_suffix('.md')}, .json and {race_report.picture_path(options.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
