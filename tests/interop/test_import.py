"""Tests of importing folders in the Hugging Face format; test_import_oracle.py compares with transformers itself."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nanolm
from nanolm.errors import NanolmError
from nanolm.inference.load import load_run
from nanolm.interop.architectures import architecture_of
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints import files as checkpoint
from tests.helpers import mostly_slow
from tests.interop.hf_folders import (
    CONFIGS,
    GPT2,
    LLAMA,
    NANOCHAT,
    VOCAB_SIZE,
    make_weights,
    shapes_of,
    write_model,
    write_tokenizer,
)

TOKENS_1x16 = torch.arange(16)[None] * 16

# Logits of transformers 5.24.0 for TOKENS_1x16: token 3 at position 0, 100 at 7, 256 at 15.
LOGITS = {
    "gpt2": (-0.673471, 0.725628, 0.369108),
    "llama": (-0.378462, -0.632562, -0.698881),
    "nanochat": (0.197481, -1.532822, 0.756007),
}

# Tensors that are no weights of GPT2LMHeadModel.
BUFFERS = {
    "transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16),
    "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
}


def logits_of(run: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_run(str(run)).model(TOKENS_1x16)[0]


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small GPT-2; nothing changes it."""
    folder = tmp_path_factory.mktemp("imported")
    nanolm.import_model(write_model(folder / "model", GPT2), folder / "run")
    return folder / "run"


def test_import_nanolm_imports_no_torch() -> None:
    code = "import sys, nanolm; dir(nanolm); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


@pytest.mark.parametrize("name", mostly_slow(CONFIGS, quick=["gpt2"]))
def test_import_gives_the_logits_of_transformers(name: str, imported: Path, tmp_path: Path) -> None:
    run = imported
    if name != "gpt2":
        run = tmp_path / "run"
        nanolm.import_model(write_model(tmp_path / "model", CONFIGS[name]), run)
    found = logits_of(run)
    assert found[[0, 7, 15], [3, 100, 256]].tolist() == pytest.approx(LOGITS[name], abs=2e-6)


def test_import_writes_a_complete_run(imported: Path) -> None:
    run = RunDirectory(imported)
    summary = run.read_summary()
    assert (summary.status, summary.step, summary.is_imported, summary.vocab_size) == ("completed", 0, True, VOCAB_SIZE)
    assert summary.imported is not None
    assert summary.imported["architecture"] == "GPT2LMHeadModel"
    assert summary.imported["files"].keys() == {"config.json", "vocab.json", "merges.txt", "model.safetensors"}
    assert summary.parameters == sum(tensor.numel() for tensor in make_weights(shapes_of(GPT2)).values())
    assert sorted(path.name for path in imported.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "summary.json",
        "tokenizer.json",
    ]
    found, damaged = checkpoint.newest(run.checkpoints)
    assert (found and found.step, damaged) == (0, [])
    assert [path.name for path in imported.parent.iterdir() if path.name.startswith(".")] == []


def test_import_writes_the_weights_as_safetensors_does(imported: Path, tmp_path: Path) -> None:
    written = imported / "checkpoints" / "step-00000000" / "model.safetensors"
    save_file(load_file(written), tmp_path / "again")
    assert written.read_bytes() == (tmp_path / "again").read_bytes()


def without_prefix(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda weights: without_prefix(weights | BUFFERS),
        lambda weights: weights | {"lm_head.weight": weights["transformer.wte.weight"].clone()},
    ],
    ids=["names of the first file", "tied head"],
)
def test_import_accepts_what_old_files_have(change: Callable[[Any], Any], imported: Path, tmp_path: Path) -> None:
    nanolm.import_model(write_model(tmp_path / "m", GPT2, change(make_weights(shapes_of(GPT2)))), tmp_path / "run")
    assert torch.equal(logits_of(tmp_path / "run"), logits_of(imported))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_import_converts_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in make_weights(shapes_of(LLAMA)).items()}
    runs = []
    for name, content in ((dtype, weights), ("same", {key: tensor.float() for key, tensor in weights.items()})):
        nanolm.import_model(write_model(tmp_path / f"m {name}", LLAMA, content), tmp_path / f"run {name}")
        runs.append(logits_of(tmp_path / f"run {name}"))
    assert torch.equal(*runs)


@pytest.mark.slow
def test_import_crops_learned_positions(imported: Path, tmp_path: Path) -> None:
    remarks: list[str] = []
    model = write_model(tmp_path / "model", GPT2)
    nanolm.import_model(model, tmp_path / "run", context_length=7, report=remarks.append)
    assert remarks == ["the context is cropped, from 16 to 7 tokens"]
    loaded = load_run(str(tmp_path / "run"))
    with torch.no_grad():
        found = loaded.model(TOKENS_1x16[:, :7])[0]
    assert torch.allclose(found, logits_of(imported)[:7], atol=1e-6)


@pytest.mark.slow
def test_import_does_not_lengthen_learned_positions(tmp_path: Path) -> None:
    with pytest.raises(NanolmError, match=r"16 learned positions, and --context-length is 17"):
        nanolm.import_model(write_model(tmp_path / "model", GPT2), tmp_path / "run", context_length=17)
    remarks: list[str] = []
    model = write_model(tmp_path / "llama", LLAMA)
    nanolm.import_model(model, tmp_path / "run", context_length=32, report=remarks.append)
    assert remarks == ["the context is extended beyond the positions of its training, from 16 to 32 tokens"]
    assert load_run(str(tmp_path / "run")).config.size.context_length == 32


@pytest.mark.slow
def test_import_keeps_embeddings_without_tokens(tmp_path: Path) -> None:
    remarks: list[str] = []
    model = write_model(tmp_path / "model", GPT2 | {"vocab_size": 320})
    nanolm.import_model(model, tmp_path / "run", report=remarks.append)
    assert remarks == ["the model has 63 more embeddings than the tokenizer has tokens; they are kept"]
    loaded = load_run(str(tmp_path / "run"))
    assert loaded.tokenizer.vocab_size == 320
    assert loaded.tokenizer.decode([72, 300, 256, 73]) == "H<|endoftext|>I"
    assert logits_of(tmp_path / "run").shape == (16, 320)


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        weights = make_weights(shapes_of(GPT2))
        change(weights)
        write_model(folder, GPT2, weights)

    return write


def change_config(**values: Any) -> Callable[[Path], object]:
    return lambda folder: write_model(folder, GPT2 | values, make_weights(shapes_of(GPT2)))


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (write_model(folder, GPT2) / name).unlink()


WTE, BIAS = "transformer.wte.weight", "transformer.h.1.attn.c_attn.bias"


def spoil_three(weights: dict[str, torch.Tensor]) -> None:
    del weights[BIAS]
    weights["extra"] = torch.zeros(2)
    weights[WTE] = torch.zeros(3, 8)


REFUSED: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "three tensors": (
        change_weights(spoil_three),
        [f"{BIAS} is missing", "extra is unknown", f"{WTE} has the shape [3, 8] instead of [257, 8]"],
    ),
    "integers": (change_weights(lambda w: w.update({WTE: w[WTE].long()})), [f"not supported: {WTE} is int64"]),
    "quantized": (change_config(quantization_config={"bits": 8}), ["quantization_config is"]),
    "another architecture": (
        change_config(architectures=["BertModel"], model_type="bert"),
        ["BertModel cannot be imported", "GPT2LMHeadModel, LlamaForCausalLM, NanoChatForCausalLM"],
    ),
    "another head": (change_config(architectures=["GPT2ForSequenceClassification"]), ["cannot be imported"]),
    "no architecture": (change_config(architectures=None, model_type=None), ["names no architecture"]),
    "no config": (remove("config.json"), ["the folder has no config.json"]),
    "no tokenizer": (remove("merges.txt"), ["the folder has no tokenizer"]),
    "no weights": (remove("model.safetensors"), ["the folder has no weights"]),
    "several": (
        lambda folder: (
            remove("merges.txt")(folder),
            (folder / "model.safetensors").write_bytes(b"x"),
        ),
        ["no tokenizer", "header of model.safetensors is wrong"],
    ),
    "sizes": (
        change_config(n_head=0, n_layer=1.5, n_embd="8", activation_function="tanh", scale_attn_weights=False),
        ["n_head is 0", "n_layer is 1.5", 'n_embd is "8"', 'activation_function is "tanh"', "scale_attn_weights is fa"],
    ),
    "indivisible": (change_config(n_head=3), ["config.json describes a model that cannot be built: size.d_model (8)"]),
    "many layers": (change_config(n_layer=99_999), ["config.json has 99,999 layers, and the weights 28 tensors"]),
    "vocabulary": (change_config(vocab_size=None), ["vocab_size is None"]),
    "large tokenizer": (
        lambda folder: write_tokenizer(write_model(folder, GPT2), 300),
        ["the tokenizer has 300 tokens, and the model 257 embeddings"],
    ),
    "tokenizer of another kind": (
        lambda folder: (write_model(folder, GPT2) / "tokenizer.json").write_text('{"model": {"type": "X"}}'),
        ["unknown type of model"],
    ),
    "config is a list": (lambda folder: (write_model(folder, GPT2) / "config.json").write_text("[]"), ["not a JSON o"]),
}
QUICK = ("three tensors", "another architecture", "sizes")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in REFUSED]
)
def test_import_refuses_what_is_wrong(name: str, tmp_path: Path) -> None:
    write, problems = REFUSED[name]
    write(tmp_path / "model")
    with pytest.raises(NanolmError) as caught:
        nanolm.import_model(tmp_path / "model", tmp_path / "runs" / "run")
    assert [problem for problem in problems if problem not in str(caught.value)] == [], str(caught.value)
    assert caught.value.exit_status == 2
    assert not (tmp_path / "runs").exists()


def test_import_refuses_a_target_that_exists(tmp_path: Path) -> None:
    with pytest.raises(NanolmError, match="exists"):
        nanolm.import_model(tmp_path / "model", tmp_path)
    with pytest.raises(NanolmError, match="there is no folder"):
        nanolm.import_model("./model", tmp_path / "run")
    with pytest.raises(NanolmError, match="a folder has no revisions"):
        nanolm.import_model(tmp_path, tmp_path / "run", revision="main")


ROPE = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("base", "changes", "problem"),
    [
        (LLAMA, {"rope_parameters": ROPE}, "rotary positions are scaled"),
        (
            LLAMA,
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}},
            "rotary positions are scaled",
        ),
        (LLAMA, {"rope_parameters": [1]}, "rotary positions are scaled"),
        (LLAMA, {"rope_parameters": {"rope_theta": "1"}}, 'rope_theta is "1", and must be a number'),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (LLAMA, {"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        (LLAMA, {"rms_norm_eps": True}, "rms_norm_eps is true, and must be a number"),
        (LLAMA, {"hidden_size": None}, "hidden_size is null"),
        (LLAMA, {"mlp_bias": 1}, "mlp_bias is 1, and must be true or false"),
        (NANOCHAT, {"final_logit_softcapping": "x"}, "final_logit_softcapping is"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention is true, and only false is supported"),
        (GPT2, {"n_inner": 2**40}, "n_inner is 1099511627776"),
    ],
)
def test_architecture_names_what_it_cannot_represent(
    base: dict[str, Any], changes: dict[str, Any], problem: str
) -> None:
    config = copy.deepcopy(base) | changes
    with pytest.raises(NanolmError) as caught:
        architecture_of(config, "config.json").read(config, "config.json")
    assert problem in str(caught.value)


def test_architecture_takes_its_defaults_for_missing_keys() -> None:
    settings = architecture_of({"model_type": "gpt2"}, "").read({}, "")
    assert (settings["size.n_layers"], settings["size.d_model"], settings["size.context_length"]) == (12, 768, 1024)
    assert (settings["model.activation"], settings["model.norm_eps"], settings["size.d_ff"]) == (
        "gelu_tanh",
        None,
        None,
    )


@pytest.mark.slow
def test_import_that_is_killed_leaves_no_run(tmp_path: Path) -> None:
    """Kill an import at twelve points in time; nothing visible is left, and the same command works afterwards."""
    model = write_model(tmp_path / "model", GPT2 | {"n_layer": 200})
    command = [sys.executable, "-m", "nanolm", "import", str(model), "--to", str(tmp_path / "runs" / "run")]
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    duration = time.monotonic() - began
    (tmp_path / "runs" / "run").rename(tmp_path / "whole")
    n_killed = 0
    for part in range(12):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(duration * (0.45 + 0.05 * part))
        process.send_signal(signal.SIGKILL)
        n_killed += process.wait() == -signal.SIGKILL
        if not (tmp_path / "runs" / "run").exists():
            assert all(name.startswith(".") for name in os.listdir(tmp_path / "runs"))  # noqa: PTH208
        else:
            load_run(str(tmp_path / "runs" / "run"))
            (tmp_path / "runs" / "run").rename(tmp_path / f"run {part}")
    assert n_killed
    subprocess.run(command, check=True, capture_output=True)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    files = ["checkpoints/step-00000000/model.safetensors", "config.yaml", "tokenizer.json"]
    assert all(
        (tmp_path / "runs" / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in files
    )


# Prints the peak memory before and after an import, in KiB. An exec resets VmHWM, but not ru_maxrss.
MEASURE = """
import re, sys
from pathlib import Path
import nanolm
from nanolm.interop import import_model
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
nanolm.import_model(sys.argv[3], sys.argv[2] + "/tiny")
before = peak()
nanolm.import_model(sys.argv[1], sys.argv[2] + "/run")
print(before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from /proc")
def test_import_of_124m_takes_little_memory(tmp_path: Path) -> None:
    config = GPT2 | {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
    weights = {name: torch.zeros(shape) for name, shape in shapes_of(config).items()}
    model = write_model(tmp_path / "model", config, weights)
    n_bytes = (model / "model.safetensors").stat().st_size
    assert n_bytes > 124_000_000 * 4
    tiny = write_model(tmp_path / "tiny model", GPT2)
    command = [sys.executable, "-c", MEASURE, str(model), str(tmp_path), str(tiny)]
    before, after = map(int, subprocess.check_output(command, text=True).split())
    assert after * 1024 < 2 * n_bytes
    assert (after - before) * 1024 < n_bytes


def test_summary_of_an_import_survives_a_round_trip(imported: Path) -> None:
    content = json.loads((imported / "summary.json").read_text())
    assert RunDirectory(imported).read_summary().imported == content["imported"]
