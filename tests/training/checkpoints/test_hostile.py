"""Checkpoints that lie, with checksums that match: each is one error that names the file and what is wrong."""

import os
import re
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from nanolm.checksummed import MANIFEST
from nanolm.config.checks import check
from nanolm.config.yaml_io import load_yaml
from nanolm.errors import CheckpointError, NanolmError, raise_all
from nanolm.inference.load import load_run
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.checkpoint import MAX_STRUCTURE_BYTES
from nanolm.training.checkpoints.header import MAX_BYTES
from nanolm.training.checkpoints.state import TrainState, read_state
from nanolm.training.distributed.ranks import SINGLE_PROCESS
from nanolm.training.setup import Setup, prepare
from nanolm.training.trainer import train
from tests.checkpoint_files import change_header, change_manifest, change_state, replace_file
from tests.helpers import SMALL, make_config

STEP = 4
CHECKPOINT = f"checkpoints/step-{STEP:08d}"
WEIGHT = "token_embedding.weight"
Lie = Callable[[Any], Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a transformer with averaged weights."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text.txt"
    text.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(100)))
    (folder / "run").mkdir()
    steps = ("optimizer=adamw", f"trainer.max_steps={STEP}", f"trainer.eval_every={STEP}", "trainer.ema_decay=0.9")
    train(make_config(*SMALL, "dataset=text", f"dataset.path={text}", *steps), RunDirectory(folder / "run"))
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def state(trained: Path) -> TrainState:
    """A state that was loaded from the checkpoint, to be loaded again."""
    return resume(trained).state


def resume(run: Path) -> Setup:
    config = load_yaml(run / "config.yaml")
    raise_all(check(config))
    return prepare(config, RunDirectory(run), SINGLE_PROCESS)


def load_state(run: Path, state: TrainState) -> None:
    """Load the state of the checkpoint as a resumed run does."""
    found = checkpoint.verify(run / CHECKPOINT)
    state.load_state_dict(read_state(found), 1, str(found.path / checkpoint.STRUCTURE))


def set_entry(*keys: str | int, to: Any) -> Lie:
    """Return a change of one entry of nested tables and lists."""

    def change(table: Any) -> None:
        for key in keys[:-1]:
            table = table[key]
        table[keys[-1]] = to

    return change


def remove_entry(*keys: str | int) -> Lie:
    def change(table: Any) -> None:
        for key in keys[:-1]:
            table = table[key]
        del table[keys[-1]]

    return change


FILE = {"bytes": 1, "sha256": "0" * 64}
MANIFEST_LIES: list[tuple[Lie, str]] = [
    (set_entry("files", "../../config.yaml", to=FILE), "manifest.json is damaged"),
    (set_entry("files", "/etc/passwd", to=FILE), "manifest.json is damaged"),
    (set_entry("files", "a\\b", to=FILE), "manifest.json is damaged"),
    (set_entry("files", "..", to=FILE), "manifest.json is damaged"),
    (set_entry("files", "", to=FILE), "manifest.json is damaged"),
    (set_entry("files", MANIFEST, to=FILE), "manifest.json is damaged"),
    (set_entry("files", "a\0b", to=FILE), "manifest.json is damaged"),
    (set_entry("files", "model.py", to=FILE), "manifest.json is damaged: files.'model.py' is unknown"),
    (lambda manifest: manifest["files"].update({f"{n}": FILE for n in range(10_000)}), "files.'0' is unknown"),
    (remove_entry("files", "state.json"), "files.state.json is missing"),
    (set_entry("files", "state.json", "bytes", to=-1), "manifest.json is damaged"),
    (set_entry("files", "state.json", "bytes", to="5"), "manifest.json is damaged"),
    (set_entry("files", "state.json", "bytes", to=10**30), "manifest.json is damaged"),
    (set_entry("files", "state.json", "sha256", to=5), "manifest.json is damaged"),
    (set_entry("files", to=[]), "manifest.json is damaged"),
    (set_entry("step", to=5), "manifest.json belongs to another step"),
    (set_entry("step", to=4.0), "manifest.json is damaged: step is 4.0"),
    (set_entry("best_step", to=5), "best_step is 5, after step 4"),
    (set_entry("best_step", to="4"), "best_step is '4', not a whole number"),
    (set_entry("best_step", to=-4), "best_step is -4, not a whole number"),
    (set_entry("val_loss", to="low"), "val_loss is 'low', not a finite number or null"),
    (set_entry("settings", to=None), "settings is None, not a table"),
    (remove_entry("settings"), "settings is missing"),
    (set_entry("precision", to=["fp32"]), "precision is .* not a text"),
    (set_entry("logs", "metrics.jsonl", "bytes", to=-5), "logs.metrics.jsonl.bytes is -5"),
    (set_entry("logs", "../x", to=FILE), "logs.'../x' is unknown"),
    (remove_entry("logs", "samples.jsonl"), "logs.samples.jsonl is missing"),
    (set_entry("__class__", to="x"), "'__class__' is unknown"),
]


def errors(run: Path) -> str:
    """Return the errors of listing the checkpoint."""
    return "\n".join(str(error) for error in checkpoint.inspect(run / CHECKPOINT)[1])


@pytest.mark.parametrize("number", range(len(MANIFEST_LIES)))
def test_manifest_that_lies_is_refused(number: int, run: Path) -> None:
    change, message = MANIFEST_LIES[number]
    change_manifest(run / CHECKPOINT, change)
    assert re.search(message, errors(run))


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize("content", [nested(200_000), b"{}", b"5", b"\xff", b'{"sha256": null}', b"9" * 5000])
def test_manifest_of_another_form_is_refused(content: bytes, run: Path) -> None:
    (run / CHECKPOINT / MANIFEST).write_bytes(content)
    assert "manifest.json is damaged" in errors(run)


def test_large_manifest_is_not_read(run: Path) -> None:
    with (run / CHECKPOINT / MANIFEST).open("r+b") as file:
        file.truncate(2**40)
    assert "manifest.json is damaged" in errors(run)


@pytest.mark.parametrize("name", [MANIFEST, checkpoint.STRUCTURE, checkpoint.WEIGHTS])
def test_files_outside_and_special_files_are_refused(name: str, run: Path) -> None:
    path, outside = run / CHECKPOINT / name, run.parent / "outside"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)
    assert re.search(rf"{name} (is damaged|cannot be read: it is a link to .* outside)", errors(run))
    path.unlink()
    os.mkfifo(path)
    assert re.search(rf"{name} (is damaged|cannot be read: it is a FIFO)", errors(run))
    path.unlink()
    path.mkdir()
    assert re.search(rf"{name} (is damaged|cannot be read: it is a folder)", errors(run))


@pytest.mark.parametrize("name", ["checkpoints", CHECKPOINT])
def test_checkpoint_of_another_run_is_not_followed(name: str, run: Path, trained: Path) -> None:
    shutil.rmtree(run / name)
    (run / name).symlink_to(trained / name)
    assert "links out of the run are not followed" in errors(run)
    with pytest.raises(CheckpointError, match="links out of the run are not followed"):
        load_run(str(run))


HEADER_LIES: list[tuple[Lie, str]] = [
    (set_entry(WEIGHT, "data_offsets", to=[0, 10**15]), f"{WEIGHT}' of .* is said to be in the bytes"),
    (set_entry(WEIGHT, "data_offsets", to=[-4, 0]), "is said to be in the bytes"),
    (set_entry(WEIGHT, "data_offsets", to=[0]), "is said to be in the bytes"),
    (set_entry(WEIGHT, "data_offsets", to=None), "is said to be in the bytes None"),
    (set_entry(WEIGHT, "shape", to=[2**62, 2**62]), "has the shape"),
    (set_entry(WEIGHT, "shape", to=[0, 2**62, 2**62]), "has the shape"),
    (set_entry(WEIGHT, "shape", to=[-1, -1]), "has the shape"),
    (set_entry(WEIGHT, "shape", to=["4"]), "has the shape"),
    (set_entry(WEIGHT, "shape", to=[1] * 1000), "has the shape"),
    (set_entry(WEIGHT, "dtype", to="F4096"), "has the unknown dtype 'F4096'"),
    (set_entry(WEIGHT, "dtype", to=["F32"]), "has the unknown dtype"),
    (set_entry(WEIGHT, "dtype", to="F64"), "is said to be in the bytes"),
    (set_entry(WEIGHT, to=7), "is not a tensor"),
    (remove_entry(WEIGHT, "shape"), "is not a tensor"),
    (remove_entry(WEIGHT), "begins at byte|its tensors have"),
    (set_entry("more", to={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}), "begins at byte"),
    (lambda header: header.update({f"{n}": header[WEIGHT] for n in range(9)}), "begins at byte"),
]


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.AVERAGES])
@pytest.mark.parametrize("number", range(len(HEADER_LIES)))
def test_header_that_lies_is_refused(number: int, name: str, run: Path) -> None:
    change, message = HEADER_LIES[number]
    change_header(run / CHECKPOINT, name, change)
    assert re.search(rf"step-00000004: {name} is damaged: .*({message})", errors(run))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "gives itself 0 bytes, in a file of 0"),
        (b"\xff" * 8, "gives itself 18,446,744,073,709,551,615 bytes"),
        ((MAX_BYTES + 1).to_bytes(8, "little") + b"{" * 100, "at most 16,000,000"),
        ((200_000).to_bytes(8, "little") + nested(100_000), "nested too deeply"),
        ((2).to_bytes(8, "little") + b"[]", "is not a JSON object"),
        ((2).to_bytes(8, "little") + b"\xff\xff", "can't decode"),
        ((17).to_bytes(8, "little") + b'{"a": {}, "a":{}}', "a name twice"),
        ((12).to_bytes(8, "little") + b'{"a": [9999]', "delimiter"),
    ],
)
def test_header_of_another_form_is_refused(content: bytes, message: str, run: Path) -> None:
    replace_file(run / CHECKPOINT, checkpoint.TENSORS, content)
    assert re.search(f"state.safetensors is damaged: .*{message}", errors(run))


def renamed(header: dict[str, Any]) -> None:
    header["__init__"] = header.pop(WEIGHT)


def transposed(header: dict[str, Any]) -> None:
    header[WEIGHT]["shape"].reverse()


def of_integers(header: dict[str, Any]) -> None:
    header[WEIGHT]["dtype"] = "I32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"unknown tensor __init__ \(and 1 more\)"),
        (transposed, rf"{WEIGHT} is float32 of shape \[16, \d+\], and float32 of shape \[\d+, 16\] in the model"),
        (of_integers, rf"{WEIGHT} is int32 of shape"),
    ],
)
def test_weights_of_another_model_are_refused(change: Lie, message: str, run: Path) -> None:
    change_header(run / CHECKPOINT, checkpoint.WEIGHTS, change)
    for read in (lambda: load_run(str(run)), lambda: resume(run)):
        with pytest.raises(CheckpointError, match=f"the weights do not fit the model: .*{message}"):
            read()


@pytest.mark.parametrize("change", [renamed, transposed, of_integers])
def test_averages_of_another_model_are_refused(change: Lie, run: Path) -> None:
    change_header(run / CHECKPOINT, checkpoint.AVERAGES, change)
    for read in (lambda: load_run(str(run), weights="ema"), lambda: resume(run)):
        with pytest.raises(CheckpointError, match="the averaged weights do not fit the model: "):
            read()


def value(content: Any) -> dict[str, Any]:
    return {"value": content}


GROUP = ("optimizer", "param_groups", "list", 0)
STATE_LIES: list[tuple[Lie, str]] = [
    (set_entry("__class__", to=value(1)), "'__class__' is unknown"),
    (set_entry("scalars", "model", to=value(1)), "scalars.'model' is unknown"),
    (set_entry("scalars", "load_state_dict", to=value(1)), "scalars.'load_state_dict' is unknown"),
    (set_entry("scalars", "step", to=value(5)), "scalars.step is 5, and 4 in manifest.json"),
    (set_entry("scalars", "step", to=value("4")), "scalars.step is '4', not a whole number"),
    (set_entry("scalars", "step", to=value(True)), "scalars.step is True, not a whole number"),
    (set_entry("scalars", "tokens", to=value(-1)), "scalars.tokens is -1"),
    (set_entry("scalars", "tokens", to=value(10**400)), "scalars.tokens is "),
    (set_entry("scalars", "loss_steps", to=value(1.5)), "scalars.loss_steps is 1.5"),
    (set_entry("scalars", "seconds", to={"float": "inf"}), "scalars.seconds is inf, not a finite number"),
    (set_entry("scalars", "best_val_loss", to={"float": "nan"}), "scalars.best_val_loss is nan, not a number"),
    (set_entry("scalars", "val_loss", to=value(None)), "scalars.val_loss is None, not a number"),
    (set_entry("scalars", "plateau", to={"lr": value(1)}), "plateau.'lr' is unknown"),
    (set_entry("scalars", to=value(None)), "scalars is None, not a table"),
    (remove_entry("scalars", "step"), "scalars.step is missing"),
    (remove_entry("optimizer"), "does not name the tensor"),
    (set_entry("optimizer", to=value(None)), "the optimizer state does not match: it is None|does not name the tensor"),
    (set_entry("optimizer", "state", to=value([1])), "is not a value of a saved state"),
    (set_entry(*GROUP, "newton_schulz_steps", to=value(10**9)), r"param_groups\[0\].'newton_schulz_steps' is unknown"),
    (set_entry(*GROUP, "params", to={"list": [value(0), value(0)]}), r"param_groups\[0\].params is \[0, 0\], not"),
    (set_entry(*GROUP, to=value(1)), r"param_groups\[0\] is 1, not a table"),
    (lambda state: state["optimizer"]["param_groups"]["list"].pop(), "a different number of parameter groups"),
    (set_entry("optimizer", "state", 999_999, to={}), r"state\[999999\] is of no parameter"),
    (set_entry("optimizer", "state", "0", to={}), r"state\['0'\] is of no parameter"),
    (set_entry("optimizer", "state", 0, "hook", to=value(1)), r"state\[0\] has .* not step, exp_avg, exp_avg_sq"),
    (set_entry("rng", "numpy", "position", to=value(10**6)), "rng.numpy.position is 1000000, not at most 624"),
    (set_entry("rng", "numpy", "position", to=value("1")), "rng.numpy.position is '1'"),
    (set_entry("rng", "python", "version", to=value(99)), "the state of the random generators does not match"),
    (set_entry("rng", "python", "gauss", to=value("x")), "rng.python.gauss is 'x'"),
    (set_entry("rng", "more", to=value(1)), "rng.'more' is unknown"),
    (set_entry("rng_of_other_ranks", to=value(5)), "rng_of_other_ranks is 5, not a list"),
    (set_entry("scaler", to=value("x")), "scaler is 'x', not a table or null"),
    (set_entry("scalars", "step", to={"tensor": "nothing"}), "is not a value of a saved state"),
    (set_entry("scalars", "step", to={"value": 1, "float": "inf"}), "is not a value of a saved state"),
    (set_entry("scalars", "step", to={"float": "1e5"}), "is not a value of a saved state"),
    (set_entry("scalars", "step", to={"object": "os.system"}), "is not a value of a saved state"),
    (remove_entry("rng", "torch"), "does not name the tensor"),
]


@pytest.mark.parametrize("number", range(len(STATE_LIES)))
def test_state_that_lies_is_refused(number: int, run: Path, state: TrainState) -> None:
    change, message = STATE_LIES[number]
    change_state(run / CHECKPOINT, change)
    with pytest.raises(CheckpointError, match=rf"({message})[\s\S]*where: .*state\.json"):
        load_state(run, state)


def swap(name: str, other: str) -> Lie:
    """Return a change of the state that exchanges two values."""

    def change(state: Any) -> None:
        table = state["optimizer"]["state"][0]
        table[name], state["rng"][other] = state["rng"][other], table[name]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap("exp_avg", "torch"), r"state\[0\].exp_avg is torch.uint8 of shape \[5056\], not floating-point numbers"),
        (swap("step", "torch"), r"state\[0\].step is torch.uint8"),
        (lambda state: state["rng"].update(torch=state["rng"]["numpy"]["keys"]), "is not a value of a saved state"),
    ],
)
def test_tensors_in_wrong_places_are_refused(change: Lie, message: str, run: Path, state: TrainState) -> None:
    change_state(run / CHECKPOINT, change)
    with pytest.raises(CheckpointError, match=message):
        load_state(run, state)


@pytest.mark.parametrize(
    "content",
    [
        nested(100_000),
        b'{"list": [' * 300 + b'{"value": 1}' + b"]}" * 300,
        b"{}",
        b"null",
        b'{"dict": [["a", {"value": 1}], ["a", {"value": 1}]]}',
        b'{"dict": [[["a"], {"value": 1}]]}',
        b'{"dict": {"a": 1}}',
        b"\x00\xff",
        b"1" * 5000,
        b" " * (MAX_STRUCTURE_BYTES + 1),
    ],
    ids=range(10),
)
def test_state_of_another_form_is_refused(content: bytes, run: Path, state: TrainState) -> None:
    replace_file(run / CHECKPOINT, checkpoint.STRUCTURE, content)
    with pytest.raises(CheckpointError, match=r"step-00000004: state\.json is damaged: "):
        load_state(run, state)


def test_groups_keep_the_settings_of_the_run(run: Path) -> None:
    def change(state: Any) -> None:
        state["optimizer"]["param_groups"]["list"][0] |= {"lr": value(1e9), "eps": value("x"), "fused": value(None)}

    before = resume(run).state.optimizer
    assert before is not None
    lr = before.param_groups[0]["lr"]
    change_state(run / CHECKPOINT, change)
    optimizer = resume(run).state.optimizer
    assert optimizer is not None
    group = optimizer.param_groups[0]
    assert (group["lr"], group["eps"], group["fused"]) == (lr, 1e-8, True)


@pytest.mark.parametrize("step", [-1.0, float("nan")])
def test_optimizer_step_out_of_range_is_refused(step: float, run: Path, state: TrainState) -> None:
    tensors = safetensors.torch.load_file(run / CHECKPOINT / checkpoint.TENSORS)
    assert tensors["000000"].shape == ()
    tensors["000000"] = torch.tensor(step)
    replace_file(run / CHECKPOINT, checkpoint.TENSORS, safetensors.torch.save(tensors))
    with pytest.raises(CheckpointError, match=rf"state\[0\].step is {'-1' if step < 0 else 'nan'}, not a whole number"):
        load_state(run, state)


SIZES = [
    ("size", "d_model", 1_000_000),
    ("size", "n_layers", 10**9),
    ("size", "n_layers", 100_000),
    ("size", "n_layers", -1),
    ("size", "n_heads", 0),
    ("size", "n_heads", 10**12),
    ("size", "d_ff", 10**15),
    ("size", "context_length", 2 * 10**9),
    ("size", "context_length", 10**18),
]


@pytest.mark.parametrize(("group", "name", "size"), SIZES)
def test_sizes_of_another_model_are_refused(group: str, name: str, size: int, run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(re.sub(rf"(?m)^  {name}: .*$", f"  {name}: {size}", config.read_text()))
    change_manifest(run / CHECKPOINT, set_entry("settings", f"{group}.{name}", to=size))
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for read in (lambda: load_run(str(run)), lambda: resume(run)):
        with pytest.raises(NanolmError) as caught:
            read()
        assert name in str(caught.value)
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000, "KiB"
