"""Export a run as a folder that other programs open: weights, config.json, tokenizer and a model card."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nanolm.config.fields import flat
from nanolm.data.tokenizers.sentencepiece import SentencePieceTokenizer
from nanolm.errors import SettingsError, explain_os_error
from nanolm.files import remove_tree, sync_folder, temporary_sibling, write_durably
from nanolm.inference.load import Loaded
from nanolm.interop.architectures import find_architecture
from nanolm.interop.model_card import model_card
from nanolm.interop.tensors import ENTRIES, export_tensors
from nanolm.interop.tokenizer_json import to_tokenizer_json
from nanolm.json_text import dump_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Names that a tokenizer's end of text may have, of which the first that it has is chosen.
_END_OF_TEXT = ("<|endoftext|>", "<eos>", "</s>")


def export(
    loaded: Loaded, folder: Path, form: str = "huggingface", dtype: str = "float32", command: str = ""
) -> list[str]:
    """Write a run to a new folder, which appears when it is complete.

    Args:
        form: "huggingface", or "safetensors" for the weights under nanolm's names with its settings.
        dtype: of the weights, a key of DTYPES.
        command: repeats the run; for the model card.

    Returns:
        Remarks, such as a tokenizer that is not exported.

    Raises:
        SettingsError: the folder exists, or no architecture represents the model.
        DiskError: it cannot be written.
    """
    if os.path.lexists(folder):
        raise SettingsError(f"{folder} exists", where="--to", hint="name a new folder")
    if form == "safetensors":
        weights = {name: tensor.contiguous() for name, tensor in loaded.model.state_dict().items()}
        files = {"config.json": _json({"nanolm": flat(loaded.config), "vocab_size": loaded.tokenizer.vocab_size})}
        name = "nanolm"
    else:
        architecture = find_architecture(loaded.config)
        name = architecture.name
        entries = ENTRIES[name](loaded.config, loaded.tokenizer.vocab_size)
        weights = export_tensors(entries, loaded.model.state_dict())
        files = {
            "config.json": _json(
                {
                    "architectures": [name],
                    "model_type": architecture.model_type,
                    **architecture.to_json(loaded.config, loaded.tokenizer.vocab_size),
                    **_end_of_text(loaded),
                    "dtype": dtype,
                }
            ),
            "generation_config.json": _json({"do_sample": True, **_end_of_text(loaded)}),
        }
    weights = {key: tensor.to(DTYPES[dtype]) for key, tensor in weights.items()}
    tokenizer_files, remarks = _tokenizer_files(loaded)
    files |= tokenizer_files
    files["README.md"] = model_card(loaded, name, dtype, command).encode()
    _write_folder(folder, weights, files)
    return remarks


def _tokenizer_files(loaded: Loaded) -> tuple[dict[str, bytes], list[str]]:
    tokenizer = loaded.tokenizer
    if isinstance(tokenizer, SentencePieceTokenizer):
        remark = "the tokenizer is written as tokenizer.model, for sentencepiece"
        return {"tokenizer.model": tokenizer.model}, [remark]
    state = to_tokenizer_json(tokenizer)
    if state is None:
        kind = loaded.config.tokenizer.name
        return {}, [f"tokenizer={kind} is not exported: Hugging Face tokenizers cannot express its rules"]
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": loaded.config.size.context_length,
        "clean_up_tokenization_spaces": False,
    }
    end = _end_token(loaded)
    if end is not None:
        settings["eos_token"] = end
    return {"tokenizer.json": _json(state), "tokenizer_config.json": _json(settings)}, []


def _end_token(loaded: Loaded) -> str | None:
    return next((name for name in _END_OF_TEXT if name in loaded.tokenizer.special_tokens), None)


def _end_of_text(loaded: Loaded) -> dict[str, int | None]:
    """The special tokens of config.json; null keeps the defaults of an architecture, which are GPT-2's ids, away."""
    end = _end_token(loaded)
    number = None if end is None else loaded.tokenizer.special_tokens[end]
    return {"bos_token_id": number, "eos_token_id": number, "pad_token_id": None}


def _write_folder(folder: Path, weights: Mapping[str, torch.Tensor], files: Mapping[str, bytes]) -> None:
    from safetensors.torch import save_file

    temporary = temporary_sibling(folder)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            save_file(dict(weights), temporary / "model.safetensors", metadata={"format": "pt"})
            for name, content in files.items():
                write_durably(temporary / name, content)
            if os.path.lexists(folder):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
            temporary.rename(folder)
            sync_folder(folder.parent)
        finally:
            remove_tree(temporary, ignore_errors=True)
    except OSError as error:
        raise explain_os_error(error, f"{folder} cannot be written", where=str(folder), option="--to") from error


def _json(value: Any) -> bytes:
    return (dump_json(value, indent=2, ensure_ascii=False) + "\n").encode()
