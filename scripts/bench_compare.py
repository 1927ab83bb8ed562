"""Measure the time of `nanolm compare` and `nanolm runs` on many runs.

    python scripts/bench_compare.py [--runs 200] [--rows 2000] [--report]

The runs have the files that training writes: a config, a summary and metric rows, of which one in forty is an
evaluation. They differ in two settings and five seeds. Times include the start of Python, which `nanolm --version`
measures alone. Expected: less than 2 seconds for 200 runs.

--runs 5000 --rows 20 --report: less than 3 seconds, and 8 for the report. --runs 1 --rows 5000000 --report: less than
10 seconds and 500 MiB each.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nanolm.compose import compose_command
from nanolm.config.yaml_io import save_yaml
from nanolm.runs.metrics import TRAIN, VAL, MetricsRow
from nanolm.runs.records import encode_row
from nanolm.runs.summary import Summary, write_summary

EVAL_EVERY = 40


def make_runs(folder: Path, n_runs: int, n_rows: int) -> None:
    """Write the runs of a sweep over lr, width and seed."""
    config = compose_command(["model=gpt", "size=tiny"]).config
    generator = random.Random(0)
    for number in range(n_runs):
        config.seed = number % 5
        config.optimizer.lr = 10 ** -(1 + number // 5 % 8 / 4)
        config.size.d_model = 64 * (1 + number // 40)
        path = folder / f"run{number}"
        path.mkdir()
        (path / "config.yaml").write_text(save_yaml(config), encoding="utf-8")
        rows, loss = [], 4.0
        for step in range(1, n_rows + 1):
            loss = 1.5 + (loss - 1.5) * 0.999 + generator.gauss(0, 1e-3)
            row = MetricsRow(step=step, split=TRAIN, loss=loss, lr=1e-3, grad_norm=0.5, tokens_per_second=64e3)
            if step % EVAL_EVERY == 0:
                row = MetricsRow(step=step, split=VAL, loss=loss, bits_per_byte=loss * 1.44)
            rows.append(encode_row(dataclasses.replace(row, tokens=640 * step, seconds=step / 100)))
        (path / "metrics.jsonl").write_bytes(b"".join(rows))
        summary = Summary(
            status="completed",
            kind="trained",
            choices={"model": "gpt", "size": "tiny"},
            seed=config.seed,
            parameters=812_800,
            vocab_size=65,
            lossless=True,
            val_scored_tokens=1000,
            baseline_losses={"counted_bigram": 2.5},
            corpus="c" * 64,
            tokenizer="t" * 64,
            step=n_rows,
            tokens=640 * n_rows,
            seconds=n_rows / 100,
            tokens_per_second=64_000.0,
            best_val_loss=loss,
            final_val_loss=loss,
            bits_per_byte=loss * 1.44,
            flops_per_token=5_000_000,
        )
        write_summary(path / "summary.json", summary)


def measure(*arguments: str, repeats: int = 5) -> tuple[float, float]:
    """Return the minimum and the median seconds of several runs of a command."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "nanolm", *arguments], check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - began)
    return min(found), statistics.median(found)


def main() -> None:
    """Print the time of each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--report", action="store_true", help="also measure the report, without attention maps")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_runs(Path(folder), options.runs, options.rows)
        n_bytes = sum(path.stat().st_size for path in Path(folder).glob("*/*"))
        print(f"{options.runs} runs with {options.rows} rows each, {n_bytes / 1e6:.0f} MB")
        commands = [["compare", "--target", "1.6"], ["compare", "--json"], ["runs"], ["--version"]]
        if options.report:
            commands.append(["report", "--maps", "0", "-o", str(Path(folder) / "report.html")])
        for command in commands:
            arguments = command if command == ["--version"] else [command[0], folder, *command[1:]]
            fastest, median = measure(*arguments)
            print(f"  nanolm {' '.join(command[:3]):<22} {median:.2f} s, minimum {fastest:.2f} s")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(f"  peak memory of these commands: {peak / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
