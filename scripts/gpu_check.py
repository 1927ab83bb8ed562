"""Check nanolm on a GPU: tests, exact resume, speed, memory and losses, reported as Markdown and JSON.

    python scripts/gpu_check.py                          all checks; writes docs/gpu-check.md and .json
    python scripts/gpu_check.py --sizes tiny --no-tests --trainings    some rows, without training to a loss
    python scripts/gpu_check.py --most-rows 0 --no-tests --seeds 3     only the trainings, with three seeds

Each row is measured in a separate process on random tokens, so that a failure (out of memory, no compiler) does not
affect other rows; the table shows its error.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_training

REPOSITORY = Path(__file__).resolve().parent.parent

# Vocabulary size and batch size by model size.
SIZES = {"tiny": (65, 64), "small": (65, 64), "gpt2": (50257, 16)}
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
WARMUP_STEPS = 5
MEASURED_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        overrides: further overrides.
    """

    size: str
    model: str
    precision: str
    compile: bool
    attention: str
    deterministic: bool
    device: str
    overrides: tuple[str, ...] = ()

    @property
    def all_overrides(self) -> list[str]:
        """Return the overrides of `nanolm train` for these settings."""
        return [
            f"size={self.size}",
            f"model={self.model}",
            f"trainer.batch_size={SIZES[self.size][1]}",
            f"trainer.precision={self.precision}",
            f"trainer.compile={str(self.compile).lower()}",
            f"trainer.attention_backend={self.attention}",
            f"trainer.deterministic={str(self.deterministic).lower()}",
            f"trainer.device={self.device}",
            "logger=none",
            *self.overrides,
        ]


def rows_of(options: argparse.Namespace) -> list[Row]:
    """Return rows of all sizes and precisions, eager and compiled; in bf16 also FlexAttention and fast kernels."""
    compiled = (False,) if options.eager else (False, True)
    found = []
    for size, model in itertools.product(options.sizes, ("gpt2", "gpt")):
        variants = [(precision, c, "sdpa", True) for precision in options.precisions for c in compiled]
        if "bf16" in options.precisions:
            variants += [("bf16", compiled[-1], "sdpa", False), *(("bf16", c, "flex", True) for c in compiled)]
        found += [Row(size, model, *variant, options.device, tuple(options.set)) for variant in variants]
    return found[: options.most_rows]


def measure(row: Row, seconds: float = MEASURED_SECONDS) -> dict[str, Any]:
    """Measure tokens per second, utilization and peak memory of training steps on random tokens."""
    import torch

    from nanolm.compose import compose_command
    from nanolm.config.checks import check
    from nanolm.errors import raise_all
    from nanolm.model import backend_choice, count, memory_estimate
    from nanolm.model.build import build, count_parameters
    from nanolm.training import meters
    from nanolm.training.compilation import compile_loss
    from nanolm.training.determinism import set_determinism
    from nanolm.training.optimizers import build as optimizers
    from nanolm.training.precision import NumberFormat, choose_device
    from nanolm.training.step import MicroBatch, loss_function, update

    config = compose_command(row.all_overrides).config
    raise_all(check(config))
    settings, vocab_size = config.trainer, SIZES[row.size][0]
    device = choose_device(settings.device)
    set_determinism(settings.deterministic, device)
    backend_choice.require_device(settings.attention_backend, device)
    number_format = NumberFormat(settings.precision, device)
    model = build(config, vocab_size).to(device)
    loss_fn = loss_function(model)
    if row.compile:
        loss_fn = compile_loss(loss_fn)
    optimizer = optimizers.build(config.optimizer, model)
    meters.reset_peak_memory(device)
    shape = (settings.batch_size, config.size.context_length + 1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, shape, generator=generator).to(device)
    losses = []
    steps, start = 0, 0.0
    while steps <= WARMUP_STEPS or time.perf_counter() - start < seconds:
        if steps == WARMUP_STEPS:
            start = time.perf_counter()
        batch = [MicroBatch(tokens[:, :-1], tokens[:, 1:])]
        result = update(model, optimizer, batch, number_format, settings.clip_norm, loss_fn=loss_fn)
        losses.append(result.loss)  # waits for the device, so that the time is that of the step
        steps += 1
    speed = (steps - WARMUP_STEPS) * settings.batch_size * config.size.context_length / (time.perf_counter() - start)
    n_parameters = count_parameters(model)
    flops = count.training_flops_per_token(config, vocab_size)
    peak = meters.peak_flops(device, number_format.name, None)
    return {
        "parameters": n_parameters,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "steps": steps,
        "tokens_per_second": speed,
        "mfu": meters.utilization(speed, flops, peak, 1),
        "peak_memory": meters.peak_memory(device),
        "peak_memory_by_formula": memory_estimate.peak_memory(config, n_parameters, vocab_size, number_format.name),
    }


def print_measured(row: dict[str, Any], seconds: float) -> int:
    """Print the result of `measure`, or its error, as JSON."""
    from nanolm.errors import NanolmError

    try:
        found = measure(Row(**{**row, "overrides": tuple(row["overrides"])}), seconds)
    except NanolmError as error:
        found = {"error": error.found}
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    print(json.dumps(found))
    return 0


def measure_in_process(row: Row, seconds: float) -> dict[str, Any]:
    """Return the result of `measure` in a separate process, or its error."""
    command = [sys.executable, __file__, "--measure", json.dumps(dataclasses.asdict(row)), "--seconds", str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=REPOSITORY)
    except subprocess.TimeoutExpired:
        return {"error": "no result after 15 minutes"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"exit status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def run_tests(folder: Path) -> dict[str, Any]:
    """Run the tests that need a GPU, including exact resume, and return their names by outcome."""
    report = folder / "gpu-tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "gpu and not gpu_check",
        f"--junitxml={report}",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if not report.exists():
        return {"error": done.stdout[-2000:] + done.stderr[-2000:]}
    outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in xml.etree.ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        outcomes[kind].append(str(case.get("name")))
    report.unlink()
    return outcomes


def about(device: str) -> dict[str, Any]:
    """Return facts about the machine and the versions."""
    import torch

    from nanolm.runs.provenance import git, versions
    from nanolm.training.precision import choose_device, device_facts

    return {
        "date": datetime.datetime.now().date().isoformat(),
        "device": device,
        **device_facts(choose_device(device)),
        "torch_build": torch.__version__,
        **versions(),
        "git": git(REPOSITORY),
    }


def in_markdown(found: dict[str, Any]) -> str:
    """Format the report as Markdown."""
    lines = ["# GPU check", "", "Written by `python scripts/gpu_check.py`; do not edit.", ""]
    lines += [f"- {name}: {value}" for name, value in found["about"].items()]
    tests = found["tests"]
    if tests is not None:
        lines += ["", "## Tests that need a GPU", ""]
        lines += [tests["error"]] if "error" in tests else [f"- {kind}: {len(names)}" for kind, names in tests.items()]
        lines += [f"- failed: `{name}`" for name in tests.get("failed", [])]
    lines += ["", "## Training steps", ""]
    settings = ("size", "model", "precision", "compile", "attention", "deterministic")
    columns = [*settings, "tokens/s", "MFU", "peak memory", "by formula"]
    lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(settings) + " ---: |" * 4]
    for row in found["rows"]:
        cells = [row[name] for name in settings]
        result = row["result"]
        if "error" in result:
            values = [result["error"].replace("|", "\\|"), "", "", ""]
        else:
            mfu = "" if result["mfu"] is None else f"{result['mfu']:.1%}"
            peaks = (result["peak_memory"], result["peak_memory_by_formula"])
            memory = ["" if peak is None else f"{peak / 2**30:.2f} GiB" for peak in peaks]
            values = [f"{result['tokens_per_second']:,.0f}", mfu, *memory]
        lines.append("| " + " | ".join(map(str, [*cells, *values])) + " |")
    lines += gpu_training.in_markdown(found["trainings"]) if found["trainings"] else []
    return "\n".join(lines) + "\n"


def write(output: Path, found: dict[str, Any]) -> None:
    """Write the report, after each row, so that results survive a failure of the machine."""
    output.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(in_markdown(found), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; return 1 if a test failed or a row has an error, 2 if the device does not exist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N; cpu to test the script (cuda)")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="(all)")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS, help="(all)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--no-tests", action="store_true", help="skip the tests")
    parser.add_argument("--seconds", type=float, default=MEASURED_SECONDS, help="measured time per row (5)")
    parser.add_argument("--most-rows", type=int, help="largest number of rows (all)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further overrides of every row")
    parser.add_argument(
        "--trainings", nargs="*", default=list(gpu_training.TRAININGS), choices=list(gpu_training.TRAININGS),
        metavar="NAME", help=f"runs that train to a loss: {', '.join(gpu_training.TRAININGS)} (all)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds of each training (1)")
    parser.add_argument("--text", type=Path, help="a copy of tiny Shakespeare for the trainings (downloaded)")
    parser.add_argument(
        "-o", "--output", type=Path, default=REPOSITORY / "docs" / "gpu-check", help="path without suffix"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(REPOSITORY))
    if options.measure:
        return print_measured(json.loads(options.measure), options.seconds)

    from nanolm.errors import NanolmError

    try:
        facts = about(options.device)
    except NanolmError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    options.output.parent.mkdir(parents=True, exist_ok=True)
    tests = None if options.no_tests else run_tests(options.output.parent)
    found: dict[str, Any] = {"about": facts, "tests": tests, "rows": [], "trainings": []}
    rows = rows_of(options)
    for number, row in enumerate(rows, start=1):
        result = measure_in_process(row, options.seconds)
        found["rows"].append({**dataclasses.asdict(row), "result": result})
        outcome = result.get("error") or f"{result['tokens_per_second']:,.0f} tokens/s"
        print(f"{number}/{len(rows)} {' '.join(row.all_overrides[:6])}: {outcome}", file=sys.stderr, flush=True)
        write(options.output, found)
    own = [f"trainer.device={options.device}", *options.set]
    own += [] if options.text is None else [f"dataset.path={options.text.resolve()}"]
    for training in gpu_training.train_all(options.trainings, options.seeds, own):
        found["trainings"].append(training)
        print(gpu_training.describe(training), file=sys.stderr, flush=True)
        write(options.output, found)
    has_failed = bool(tests and (tests.get("failed") or "error" in tests))
    results = [*(row["result"] for row in found["rows"]), *found["trainings"]]
    return int(has_failed or any("error" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
