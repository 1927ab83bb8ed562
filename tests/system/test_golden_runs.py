"""Golden runs: the metric rows and weights of eight short command lines equal golden_runs.json bit for bit.

Results depend on the CPU, the version of PyTorch and, because the text is Python's documentation, that of Python. The
file has an entry per kind of machine; on others the tests are skipped. To record an entry, or to renew it after an
intended change of results, run this in the root of the repository::

    python -m tests.system.test_golden_runs --record
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN_FILE = Path(__file__).with_name("golden_runs.json")
RECORD = "python -m tests.system.test_golden_runs --record"

# Fields of a row that depend on time.
TIMED_FIELDS = ("seconds", "tokens_per_second", "mfu")

SHORT = (
    "dataset=python_docs",
    "dataset.val_fraction=0.02",
    "seed=7",
    "logger=none",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.max_steps=12",
    "trainer.log_every=2",
    "trainer.eval_every=4",
    "trainer.sample_tokens=0",
)
TINY = (*SHORT, "size=tiny", "size.n_layers=2")
ADAMW = (*TINY, "optimizer=adamw")

# Command lines of each golden run, executed in order; the weights of the last one are compared.
RUNS: dict[str, list[tuple[str, ...]]] = {
    "bigram": [(*ADAMW, "model=bigram", "hydra.run.dir=run")],
    "gpt2_with_dropout": [(*ADAMW, "model=gpt2", "model.dropout=0.1", "hydra.run.dir=run")],
    "gpt_with_muon": [(*TINY, "model=gpt", "optimizer=muon", "hydra.run.dir=run")],
    "ladder_layer_norm": [("experiment=ladder/layer_norm", *SHORT, "hydra.run.dir=run")],
    "mask_pattern": [(*ADAMW, "mask.pattern=SL", "hydra.run.dir=run")],
    "tutorial_words": [
        ("experiment=tutorial/words", *SHORT, "size.n_layers=2", "scheduler.update_every=2", "hydra.run.dir=run")
    ],
    "ngram": [(*ADAMW, "model=ngram", "hydra.run.dir=run")],
    "fork_of_resumed_run": [
        (*ADAMW, "trainer.max_steps=6", "hydra.run.dir=run"),
        ("resume=run", "trainer.max_steps=12"),
        (*ADAMW, "resume=run", "fork=true", "optimizer.lr=5e-4", "trainer.max_steps=18", "hydra.run.dir=fork"),
    ],
}
# Run directories, in the order of their creation.
FOLDERS = ("run", "fork")

# The rows of the run directories and a hash of the weights.
Result = dict[str, Any]


def machine_key() -> str:
    """Describe everything that the bits of a result depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^vendor_id\s*:\s*(\S+)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    vendor = found[1] if found else platform.processor() or platform.system()
    capability = torch.backends.cpu.get_cpu_capability()
    python = platform.python_version()
    return f"torch {torch.__version__}, Python {python}, {vendor} {platform.machine()} {capability}"


def execute(name: str, folder: Path) -> Result:
    """Run the command lines of a golden run.

    Args:
        name: a key of :data:`RUNS`.
        folder: an empty folder for the run directories.

    Returns:
        The rows of metrics.jsonl without timed fields, and the hash of the final weights.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "NANOLM_CACHE": str(folder / "cache"),
    }
    for line in RUNS[name]:
        command = [sys.executable, "-m", "nanolm", "train", *line]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command_text(line)} exited with status {done.returncode}:\n{done.stderr}"
    written = [folder / place for place in FOLDERS if (folder / place).exists()]
    lines = [line for place in written for line in (place / "metrics.jsonl").read_text().splitlines()]
    rows = [{field: value for field, value in json.loads(line).items() if field not in TIMED_FIELDS} for line in lines]
    newest = max((written[-1] / "checkpoints").glob("step-*/model.safetensors"))
    return {"rows": rows, "weights": hash_of_weights(newest)}


def hash_of_weights(path: Path) -> str:
    """Compute a SHA-256 over the name, dtype, shape and bytes of each tensor, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def differences(expected: Result, actual: Result) -> list[str]:
    """Describe each difference between two results."""
    found = []
    if len(expected["rows"]) != len(actual["rows"]):
        found.append(f"expected {len(expected['rows'])} rows, found {len(actual['rows'])}")
    for number, (old, new) in enumerate(zip(expected["rows"], actual["rows"], strict=False), 1):
        for field in [*old, *(field for field in new if field not in old)]:
            before, now = (json.dumps(row[field]) if field in row else "missing" for row in (old, new))
            if before != now:
                place = f"row {number} (step {old.get('step')}, {old.get('split')})"
                found.append(f"{place}, field {field}: expected {before}, found {now}")
    if expected["weights"] != actual["weights"]:
        found.append(f"hash of the final weights: expected {expected['weights']}, found {actual['weights']}")
    return found


def command_text(line: tuple[str, ...]) -> str:
    return " ".join(["nanolm train", *line])


def read_golden() -> dict[str, dict[str, Result]]:
    """Read the results of the golden runs by machine key."""
    return json.loads(GOLDEN_FILE.read_text()) if GOLDEN_FILE.exists() else {}


def record() -> None:
    """Write this machine's entry; other entries are left unchanged."""
    entry = {}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            entry[name] = execute(name, Path(folder))
        print(f"{name}: {len(entry[name]['rows'])} rows, weights {entry[name]['weights'][:12]}")
    golden = {**read_golden(), machine_key(): entry}
    text = json.dumps(golden, indent=1)
    # One line per row of metrics.jsonl, so that a diff of the file shows rows.
    text = re.sub(r"\{[^{}]*\}", lambda row: re.sub(r"\n *", " ", row[0]).replace("{ ", "{").replace(" }", "}"), text)
    GOLDEN_FILE.write_text(text + "\n")
    print(f"recorded in {GOLDEN_FILE.name} for {machine_key()}")


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_golden_run(name: str, tmp_path: Path) -> None:
    entry = read_golden().get(machine_key())
    if entry is None:
        pytest.skip(f"{GOLDEN_FILE.name} has no entry for {machine_key()}; to record one: {RECORD}")
    assert name in entry, f"{GOLDEN_FILE.name} has no run {name} for {machine_key()}; to record it: {RECORD}"
    found = differences(entry[name], execute(name, tmp_path))
    if found:
        lines = "\n".join(f"  {command_text(line)}" for line in RUNS[name])
        # The difference of the weights is last, and is always command_text.
        listed = found if len(found) <= 12 else [*found[:10], f"... {len(found) - 11} more ...", found[-1]]
        changes = "\n".join(f"  {change}" for change in listed)
        pytest.fail(
            f"the golden run {name} has changed on {machine_key()}\n{lines}\n{changes}\n"
            f"If the change is intended, renew {GOLDEN_FILE.name} and give the reason in the commit: {RECORD}",
            pytrace=False,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Golden runs: the results of eight short command lines.")
    parser.add_argument("--record", action="store_true", required=True, help=f"write them to {GOLDEN_FILE.name}")
    parser.parse_args()
    record()
