"""Export a run as a folder that other programs open: weights, config.json, tokenizer and a model card."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nanolm.config.fields import flat
from nanolm.config.mask import reads_documents
from nanolm.data.conversation import template_of
from nanolm.errors import CheckpointError, NanolmError, SettingsError, explain_os_error, nearest, raise_all
from nanolm.files import new_folder, user_path, write_durably
from nanolm.inference.load import Loaded, load_run
from nanolm.interop import gguf_file
from nanolm.interop.architectures import find_architecture
from nanolm.interop.model_card import model_card
from nanolm.interop.safetensors_file import write_safetensors
from nanolm.interop.tensors import ENTRIES, export_tensors
from nanolm.interop.tokenizer_json import end_of_text, tokenizer_files
from nanolm.json_text import dump_json
from nanolm.model.lora import merged_state_dict, without_adapters
from nanolm.runs.directory import RunDirectory
from nanolm.runs.occupancy import require_outside_runs
from nanolm.runs.privacy import private

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS = ("trained", "ema")

# Groups of settings that decide the model, for --format safetensors.
_MODEL_GROUPS = ("model", "size", "mask", "tokenizer")

# Attempts to load a checkpoint of a run that is being trained, which may be replaced by a newer one meanwhile.
_ATTEMPTS = 3

State = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Exported:
    """An export that was written.

    Attributes:
        folder: the new folder.
        step: of the checkpoint.
        remarks: for the user, such as a tokenizer that could not be exported.
    """

    folder: Path
    step: int
    remarks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Content:
    """The content of an export, of which nothing is written yet.

    Attributes:
        architecture: what the model card calls the model.
        files: small files by name.
        write_weights: writes the weights to a folder.
        remarks: for the user.
    """

    architecture: str
    files: dict[str, bytes]
    write_weights: Callable[[Path], None]
    remarks: list[str] = dataclasses.field(default_factory=list)


def export(
    run: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    format: str = "huggingface",
    checkpoint: str | int | None = None,
    weights: str = "trained",
    dtype: str = "float32",
    plugins: Sequence[str] = (),
) -> Exported:
    """Write a run to a new folder, which appears when it is complete and on disk.

    Args:
        run: the run directory. A run that is being trained is not disturbed.
        folder: the folder to create.
        format: "huggingface" for transformers, "gguf" for llama.cpp, or "safetensors" for the weights of any model
            under nanolm's names.
        checkpoint: "best" (lowest validation loss), "last", or a step. None: the best, or the last one of a run that is
            being trained.
        weights: "trained", or "ema" for their exponential moving average.
        dtype: of the weights, a key of DTYPES.
        plugins: your own modules that the run was made with.

    Raises:
        NanolmError: with everything that stands in the way; nothing is written.
    """
    target = user_path(folder)
    problems: list[NanolmError] = [
        SettingsError(f"{option} is {value!r}", where=option, hint=nearest(value, known))
        for option, value, known in (
            ("--format", format, FORMATS),
            ("--dtype", dtype, DTYPES),
            ("--weights", weights, WEIGHTS),
        )
        if value not in known
    ]
    problems += _target_problems(target)
    missing = gguf_file.missing_package() if format == "gguf" else []
    problems += missing
    remarks: list[str] = []
    try:
        loaded = _load(os.fspath(run), checkpoint, weights if weights in WEIGHTS else "trained", plugins, remarks)
    except NanolmError as error:
        raise_all([*problems, error])
        raise
    content = None
    if format in FORMATS and dtype in DTYPES and not missing:
        try:
            content = FORMATS[format](loaded, _merged_weights(loaded), dtype)
        except NanolmError as error:
            problems.append(error)
    raise_all(problems)
    assert content is not None
    if reads_documents(loaded.config):
        remarks.append("the model was trained with masks within documents: give it one document at a time")
    card = model_card(loaded, content.architecture, format, dtype, weights)
    try:
        with new_folder(target) as temporary:
            content.write_weights(temporary)
            for name, text in (content.files | {"README.md": card.encode()}).items():
                write_durably(temporary / name, text)
    except OSError as error:
        raise explain_os_error(error, f"{target} cannot be written", where=str(target), option="--to") from error
    return Exported(target, loaded.step, (*remarks, *content.remarks))


def _target_problems(folder: Path) -> list[NanolmError]:
    """Return why a folder cannot be created."""
    try:
        require_outside_runs(folder, "an export is a folder of its own")
    except NanolmError as error:
        return [error]
    if not os.path.lexists(folder):
        return []
    return [SettingsError(f"{folder} exists", where="--to", hint="name a new folder, or move the old one away")]


def _load(run: str, checkpoint: str | int | None, weights: str, plugins: Sequence[str], remarks: list[str]) -> Loaded:
    """Load a checkpoint, without the lock of the run."""
    directory = RunDirectory(run)
    is_training = directory.exists() and directory.is_claimed()
    chosen = str(checkpoint if checkpoint is not None else "last" if is_training else "best")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            loaded = load_run(run, chosen, "cpu", plugins, weights)
            break
        except CheckpointError:
            if attempt == _ATTEMPTS or not is_training:
                raise
    if is_training:
        which = f"its {chosen} checkpoint" if chosen in ("best", "last") else "the checkpoint"
        remarks.append(f"the run is still being trained; this is {which}, step {loaded.step:,}")
    return loaded


def _merged_weights(loaded: Loaded) -> State:
    """Return the weights to export by nanolm's names; adapters are merged, and all others share the model's memory."""
    return merged_state_dict(loaded.model)


def _huggingface(loaded: Loaded, weights: State, dtype: str) -> _Content:
    config, tokenizer = loaded.config, loaded.tokenizer
    architecture = find_architecture(config)
    tensors = export_tensors(ENTRIES[architecture.name](config, tokenizer.vocab_size), weights)
    _require_range(tensors, dtype)
    _, number = end_of_text(tokenizer) or (None, None)
    # null keeps the defaults of an architecture away, which are GPT-2's ids.
    special = {"bos_token_id": number, "eos_token_id": number, "pad_token_id": None}
    files, remarks = _tokenizer_files(loaded)
    files["config.json"] = _json(
        {
            "architectures": [architecture.name],
            "model_type": architecture.model_type,
            **architecture.to_json(config, tokenizer.vocab_size),
            **special,
            "dtype": dtype,
        }
    )
    files["generation_config.json"] = _json({"do_sample": True, **special})
    return _Content(architecture.name, files, _safetensors_writer(tensors, dtype), remarks)


def _tokenizer_files(loaded: Loaded) -> tuple[dict[str, bytes], list[str]]:
    config = loaded.config
    return tokenizer_files(
        loaded.tokenizer, config.tokenizer.name, config.size.context_length, template_of(config.dataset)
    )


def _safetensors(loaded: Loaded, weights: State, dtype: str) -> _Content:
    config, tokenizer = loaded.config, loaded.tokenizer
    _require_range(weights, dtype)
    files, remarks = _tokenizer_files(loaded)
    config = without_adapters(config)
    settings = {key: value for key, value in flat(config).items() if key.split(".")[0] in _MODEL_GROUPS}
    # A folder that is published should not name those of its author.
    files["config.json"] = _json({"nanolm": private(settings), "vocab_size": tokenizer.vocab_size, "dtype": dtype})
    return _Content(f"{config.model.name} model", files, _safetensors_writer(weights, dtype), remarks)


def _gguf(loaded: Loaded, weights: State, dtype: str) -> _Content:
    model = gguf_file.prepare(loaded.config, loaded.tokenizer, weights, loaded.run.path.resolve().name)
    _require_range(model.tensors, dtype)
    return _Content(model.architecture, {}, lambda folder: gguf_file.write(folder / "model.gguf", model, DTYPES[dtype]))


# Each builds the content of an export, or raises a NanolmError with everything that stands in the way.
FORMATS: dict[str, Callable[[Loaded, State, str], _Content]] = {
    "huggingface": _huggingface,
    "safetensors": _safetensors,
    "gguf": _gguf,
}


def _safetensors_writer(tensors: State, dtype: str) -> Callable[[Path], None]:
    return lambda folder: write_safetensors(folder / "model.safetensors", tensors, DTYPES[dtype])


def _require_range(tensors: State, dtype: str) -> None:
    """Require that no weight becomes infinite.

    Raises:
        SettingsError: naming the first tensor in which one would.
    """
    if DTYPES[dtype] is not torch.float16:
        return
    limit = torch.finfo(torch.float16).max
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and (largest := float(tensor.abs().max())) > limit:
            raise SettingsError(
                f"{name} has the weight {largest:,.0f}, and float16 ends at {limit:,.0f}",
                where="--dtype",
                hint="use --dtype bfloat16 or float32",
            )


def _json(value: Any) -> bytes:
    return (dump_json(value, indent=2, ensure_ascii=False) + "\n").encode()
