"""Exported folders: what transformers reads from them, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import nanolm
from nanolm.errors import NanolmError, RunError, SettingsError
from nanolm.inference.load import load_run
from nanolm.interop.export import export
from nanolm.interop.safetensors_file import write_safetensors
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints.header import read_header
from tests.helpers import Nanolm, kill_process_group, mostly_slow, temporary_files, wait_until
from tests.interop.oracle import open_exported
from tests.run_fixtures import make_run


@pytest.fixture(scope="module")
def bigram(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A run whose best checkpoint, of step 2, is not its last, of step 4."""
    steps = ("trainer.max_steps=4", "trainer.eval_every=2", "scheduler=constant")
    return make_run(tmp_path_factory.mktemp("bigram") / "run", text, "model=bigram", *steps, lr=30)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Path]:
    """A run of each architecture, with different tokenizers and averaged weights."""
    folder = tmp_path_factory.mktemp("runs")
    given = {
        "gpt2": ("tokenizer=bpe", "tokenizer.vocab_size=300", "trainer.ema_decay=0.9"),
        "llama": ("tokenizer=byte", "size.n_kv_heads=1", "trainer.ema_decay=0.9"),
        "gpt": ("tokenizer=word", "trainer.ema_decay=0.9"),
    }
    steps = ("trainer.max_steps=20", "trainer.eval_every=5")
    return {
        model: make_run(folder / model, text, f"model={model}", *settings, *steps) for model, settings in given.items()
    }


def test_export_writes_a_complete_folder(trained: Path, tmp_path: Path) -> None:
    written = export(trained, tmp_path / "a" / "b")
    assert (written.folder, written.remarks) == (tmp_path / "a" / "b", ())
    names = {path.name for path in written.folder.iterdir()}
    assert names == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert temporary_files(tmp_path) == []
    assert written.step == load_run(str(trained)).step
    config = json.loads((written.folder / "config.json").read_text())
    assert config["architectures"] == ["NanoChatForCausalLM"]
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (None, None, None)


@pytest.mark.slow
def test_export_chooses_checkpoint(trained: Path, tmp_path: Path) -> None:
    steps = {
        name: export(trained, tmp_path / repr(name), checkpoint=name).step for name in (None, "best", "last", 30, "30")
    }
    assert steps["last"] == steps[30] == steps["30"] == 30
    assert steps[None] == steps["best"] == load_run(str(trained)).step
    with pytest.raises(NanolmError, match="no checkpoint of step 7"):
        export(trained, tmp_path / "x", checkpoint=7)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_safetensors_file_is_read_by_the_library(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 7, generator=generator)
    tensors = {
        "plain": matrix,
        "transposed": matrix.T,
        "rows": matrix[1:3],
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "counts": torch.arange(5) + 2**40,
        "flags": torch.tensor([True, False, True]),
    }
    write_safetensors(tmp_path / "ours", tensors, dtype)
    found = load_file(tmp_path / "ours")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.to(dtype) if tensor.is_floating_point() else tensor
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected)
    save_file({name: tensor.contiguous().clone() for name, tensor in found.items()}, tmp_path / "theirs")
    assert read_header(tmp_path / "ours") == read_header(tmp_path / "theirs")
    with pytest.raises(FileExistsError):
        write_safetensors(tmp_path / "ours", tensors, dtype)


@pytest.mark.slow
def test_safetensors_format_has_every_tensor_of_any_model(bigram: Path, tmp_path: Path, text: Path) -> None:
    ngram = make_run(tmp_path / "ngram", text, "model=ngram", "tokenizer=word")
    for run in (bigram, ngram):
        written = export(run, tmp_path / run.parent.name, format="safetensors", dtype="bfloat16")
        state = load_run(str(run)).model.state_dict()
        found = load_file(written.folder / "model.safetensors")
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            # Counts keep their dtype.
            assert torch.equal(found[name], tensor.bfloat16() if tensor.is_floating_point() else tensor)
        config = json.loads((written.folder / "config.json").read_text())
        assert config["nanolm"]["model.name"] in ("bigram", "ngram")
        assert config["vocab_size"] == load_run(str(run)).tokenizer.vocab_size


def test_export_reports_everything_wrong_at_once(bigram: Path, tmp_path: Path) -> None:
    with pytest.raises(NanolmError) as error:
        export(bigram, tmp_path)
    assert f"{tmp_path} exists" in str(error.value)
    assert "model=bigram (needs transformer)" in str(error.value)
    assert "--format safetensors" in str(error.value)
    with pytest.raises(NanolmError) as error:
        export(tmp_path / "none", tmp_path, format="onnx", dtype="int8", weights="raw")
    for found in ("--format is 'onnx'", "--dtype is 'int8'", "--weights is 'raw'", "exists", "there is no folder"):
        assert found in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind", mostly_slow(["file", "folder", "empty folder", "link", "broken link"], quick=["folder", "broken link"])
)
def test_export_refuses_target_that_exists(kind: str, trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    elif "folder" in kind:
        target.mkdir()
    else:
        target.symlink_to(tmp_path if kind == "link" else tmp_path / "nothing")
    if kind == "folder":
        (target / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SettingsError, match="exists"):
        export(trained, target)
    assert sorted(tmp_path.rglob("*")) == before


def test_export_refuses_target_in_a_run(trained: Path) -> None:
    with pytest.raises(RunError, match="is a part of the run"):
        export(trained, trained / "checkpoints" / "x")
    with pytest.raises(NanolmError, match="is a part of the run"):
        export(trained, trained / "config.yaml")


def test_export_refuses_weights_beyond_float16(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanolm.interop import export as module

    merged = module._merged_weights

    def large(loaded: object) -> dict[str, torch.Tensor]:
        state = {name: tensor.clone() for name, tensor in merged(loaded).items()}  # type: ignore[arg-type]
        state["head.weight"][3, 3] = -70_000
        return state

    monkeypatch.setattr(module, "_merged_weights", large)
    with pytest.raises(SettingsError, match=r"lm_head.weight has the weight 70,000"):
        export(trained, tmp_path / "x", dtype="float16")
    export(trained, tmp_path / "y", dtype="bfloat16")
    assert [path.name for path in tmp_path.iterdir()] == ["y"]


def test_export_without_averages_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no averaged weights"):
        export(trained, tmp_path / "x", weights="ema")


def test_python_api_exports(trained: Path, tmp_path: Path) -> None:
    written = nanolm.export(str(trained), str(tmp_path / "out"), format="safetensors")
    assert (written.folder / "model.safetensors").is_file()
    assert "export" in dir(nanolm)
    with pytest.raises(AttributeError):
        _ = nanolm.exports  # type: ignore[attr-defined]


def test_model_card_has_figures_protocol_and_command(trained: Path, tmp_path: Path) -> None:
    card = (export(trained, tmp_path / "out", checkpoint="last").folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["nanolm"],
    }
    last = RunDirectory(trained).read_metrics("val")[-1]
    summary = RunDirectory(trained).read_summary()
    assert f"| validation loss | {last.loss:.4f} nats per token |" in body
    assert f"| validation bits per byte | {last.bits_per_byte:.4f} |" in body
    assert f"Each of the {summary.val_scored_tokens:,} tokens of the validation split was scored once" in body
    assert f"SHA-256 of the text: {summary.corpus}" in body
    settings = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert settings["size"]["d_model"] == 16
    assert settings["seed"] == 1337


def test_model_card_repeats_run_without_private_paths(bigram: Path, tmp_path: Path, text: Path) -> None:
    folder = export(bigram, tmp_path / "out", format="safetensors").folder
    card = (folder / "README.md").read_text()
    line = card.split("## Repeat it\n\n```\n")[1].split("\n")[0]
    assert line.startswith("nanolm train ")
    assert "dataset.path=small.txt" in line
    assert 'path: "small.txt"' in card
    for name in ("README.md", "config.json"):
        assert str(text.parent) not in (folder / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["trained", "ema"])
@pytest.mark.parametrize("model", ["gpt2", "llama", "gpt"])
def test_transformers_opens_export(model: str, weights: str, runs: dict[str, Path], tmp_path: Path, text: Path) -> None:
    loaded = load_run(str(runs[model]), device="cpu", weights=weights)
    written = export(runs[model], tmp_path / "out", weights=weights)
    other, tokenizer = open_exported(written.folder)
    ids = loaded.tokenizer.encode(text.read_text()[:60])[:16].astype(np.int64)
    assert tokenizer(text.read_text()[:60]).input_ids[:16] == ids.tolist()
    with torch.no_grad():
        difference = loaded.model(torch.from_numpy(ids)[None]) - other(torch.from_numpy(ids)[None]).logits
    assert float(difference.abs().max()) < 1e-4
    card = (written.folder / "README.md").read_text()
    row = next(row for row in RunDirectory(runs[model]).read_metrics("val") if row.step == written.step)
    assert f"{row.ema_loss if weights == 'ema' else row.loss:.4f} nats per token" in card
    assert ("exponential moving average" in card) == (weights == "ema")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_transformers_opens_rounded_export(dtype: str, runs: dict[str, Path], tmp_path: Path) -> None:
    exact, _ = open_exported(export(runs["gpt"], tmp_path / "exact").folder)
    rounded, _ = open_exported(export(runs["gpt"], tmp_path / "rounded", dtype=dtype).folder)
    assert {tensor.dtype for tensor in rounded.state_dict().values()} == {getattr(torch, dtype)}
    for name, tensor in exact.state_dict().items():
        assert torch.equal(rounded.state_dict()[name], tensor.to(getattr(torch, dtype)))


# One step of the tutorials' figure: enough for text that is not a loop of one token.
TRAINED_200 = (
    *("size=tiny", "size.n_layers=2", "size.d_model=64", "size.context_length=256", "trainer.batch_size=8"),
    *("trainer.max_steps=200", "trainer.eval_every=100", "trainer.sample_tokens=0", "logger=none"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("gpt2", ("tokenizer=char",)),
        ("gpt2", ("tokenizer=bpe", "tokenizer.vocab_size=512")),
        ("gpt", ("tokenizer=char",)),
        ("gpt", ("tokenizer=unigram", "tokenizer.vocab_size=512", "model.logit_softcap=15")),
        ("llama", ("tokenizer=byte", "size.n_kv_heads=2")),
        ("llama", ("tokenizer=bpe", "tokenizer.vocab_size=512", "model.tie_embeddings=true")),
    ],
)
def test_greedy_text_equals_that_of_transformers(
    model: str, settings: tuple[str, ...], nanolm: Nanolm, shakespeare: Path
) -> None:
    text = ("dataset=text", f"dataset.path={shakespeare}")
    done = nanolm("train", f"model={model}", *settings, *TRAINED_200, *text, "hydra.run.dir=run", timeout=600)
    assert done.returncode == 0, done.stderr
    prompt = "First Citizen:\nBefore we proceed"
    done = nanolm("generate", "run", "--prompt", prompt, "--temperature", "0", "--max-new-tokens", "200")
    assert nanolm("export", "run", "--to", "exported").returncode == 0
    other, tokenizer = open_exported(nanolm.folder / "exported")
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert ids.shape[1] + 200 <= 256
    for use_cache in (True, False):
        tokens = other.generate(
            ids, max_new_tokens=200, do_sample=False, use_cache=use_cache, attention_mask=torch.ones_like(ids)
        )
        assert tokens.shape[1] == ids.shape[1] + 200
        assert tokenizer.decode(tokens[0]) == done.stdout.removesuffix("\n")


def test_run_in_training_exports_its_last_checkpoint(bigram: Path, tmp_path: Path) -> None:
    still = "the run is still being trained; this is"
    # A run is known to be in training by its lock.
    with RunDirectory(bigram).claim():
        for checkpoint, step, which in (
            (None, 4, "its last checkpoint"),
            ("best", 2, "its best checkpoint"),
            (4, 4, "the checkpoint"),
        ):
            written = export(bigram, tmp_path / repr(checkpoint), format="safetensors", checkpoint=checkpoint)
            assert (written.step, written.remarks) == (step, (f"{still} {which}, step {step}",))
    written = export(bigram, tmp_path / "later", format="safetensors")
    assert (written.step, written.remarks) == (2, ())


def last_checkpoint(run: Path) -> int:
    """Return the step of the last complete checkpoint; 0 if there is none."""
    return max((int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*")), default=0)


@pytest.mark.slow
def test_export_does_not_disturb_training(nanolm: Nanolm, small_text: Path) -> None:
    run = nanolm.folder / "run"
    process = nanolm.start(
        *("train", "dataset=text", f"dataset.path={small_text}", "size.n_layers=2", "size.n_heads=2"),
        *("size.d_model=16", "size.context_length=16", "trainer.batch_size=4", "trainer.sample_tokens=0"),
        # Nobody reads the pipe of its output, which must not fill up.
        *("trainer.max_steps=1000000", "trainer.eval_every=1000000", "trainer.log_every=1000000"),
        *("trainer.save_every=100", "logger=none", "hydra.run.dir=run"),
    )
    try:
        wait_until(lambda: last_checkpoint(run) > 0, process)
        # A stopped process keeps its lock, and its last checkpoint.
        os.killpg(process.pid, signal.SIGSTOP)
        before = last_checkpoint(run)
        done = nanolm("export", "run", "--to", "out")
        assert done.returncode == 0, done.stderr
        assert f"the run is still being trained; this is its last checkpoint, step {before}" in done.stderr
        assert done.stdout == f"exported step {before} to out\n"
        os.killpg(process.pid, signal.SIGCONT)
        wait_until(lambda: last_checkpoint(run) > before, process)
    finally:
        kill_process_group(process)
    assert "still being trained" not in nanolm("export", "run", "--to", "again").stderr
