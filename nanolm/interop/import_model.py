"""Import a model in the Hugging Face format as a run: settings, tokenizer, one checkpoint and a summary."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from nanolm.compose import compose_command
from nanolm.config.checks import MODEL_CHECKS, check
from nanolm.config.identity import identity, recorded
from nanolm.config.model import Positions, TransformerConfig
from nanolm.config.run import Config
from nanolm.config.tokenizer import TokenizerConfig
from nanolm.config.yaml_io import save_yaml
from nanolm.data import tokenizers
from nanolm.data.tokenizers.checks import MAX_VOCAB_SIZE
from nanolm.errors import NanolmError, RunError, SettingsError, explain_os_error, raise_all
from nanolm.files import new_folder, user_path, write_durably
from nanolm.interop.architectures import Architecture, architecture_of
from nanolm.interop.sources import CONFIG, SourceFolder, find_source
from nanolm.interop.tensors import ENTRIES, Entry, import_tensors, require_tensors
from nanolm.interop.tokenizer_files import FoundTokenizer, read_tokenizer
from nanolm.interop.weights import DTYPES, Weights
from nanolm.model import count
from nanolm.registry import TOKENIZERS
from nanolm.runs import provenance
from nanolm.runs.directory import RunDirectory
from nanolm.runs.occupancy import require_outside_runs
from nanolm.runs.summary import IMPORTED, Summary, write_summary
from nanolm.training.checkpoints.streamed import write_weights

Report = Callable[[str], None]

# Tensors that are no weights: masks and angles that older versions of transformers saved.
_BUFFERS = re.compile(r".*(\.attn\.(masked_)?bias|rotary_emb\.inv_freq)")

HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class _Found:
    """What was read and checked of a model.

    Attributes:
        config: settings of the run.
        choices: the option chosen in the groups that the model decides.
        n_positions: of the stored position embedding; its first size.context_length rows are kept.
        context_length: that the user gave.
        names: the name in the files of each tensor.
    """

    source: SourceFolder
    architecture: Architecture
    config: Config
    choices: dict[str, str]
    vocab_size: int
    n_positions: int
    context_length: int | None
    weights: Weights
    names: dict[str, str]
    tokenizer: FoundTokenizer


def import_model(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    revision: str | None = None,
    context_length: int | None = None,
    report: Report = lambda text: None,
) -> Summary:
    """Import a model as a run, which appears when it is complete.

    The weights are converted to fp32 one tensor at a time, from files that are mapped into memory.

    Args:
        source: a folder in the Hugging Face format, or a name on the hub.
        folder: the run directory, which is new.
        revision: a branch, tag or commit on the hub; None is its main branch.
        context_length: of the run; None is the model's.
        report: receives remarks.

    Returns:
        The summary of the run.

    Raises:
        NanolmError: the model cannot be imported, with every reason; nothing was written.
        DiskError: the run cannot be written; nothing is left.
    """
    target = user_path(folder)
    require_outside_runs(target, "a run cannot be inside of another run")
    if os.path.lexists(target):
        raise SettingsError(f"{target} exists", where="--to", hint="name a new folder, or move the old one away")
    found = _read(find_source(os.fspath(source), revision, report), context_length, report)
    files = [CONFIG, *found.tokenizer.files, *found.weights.files]
    try:
        with ThreadPoolExecutor(max_workers=1) as executor, new_folder(target) as temporary:
            hashes = {name: executor.submit(found.source.sha256, name) for name in files}
            return _write(found, RunDirectory(temporary), hashes)
    except OSError as error:
        raise explain_os_error(error, f"{target} cannot be written", where=str(target), option="--to") from error


def _read(source: SourceFolder, context_length: int | None, report: Report) -> _Found:
    """Read and check a model; raises every problem that is found."""
    config_json = source.read_json(CONFIG)
    where = str(source.path / CONFIG)
    architecture = architecture_of(config_json, where)
    config, choices, n_positions, vocab_size = _settings(architecture, config_json, context_length, where, report)
    problems: list[NanolmError] = []

    def attempt(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except NanolmError as error:
            problems.append(error)

    tokenizer = attempt(lambda: read_tokenizer(source, vocab_size))
    weights = attempt(lambda: Weights(source))
    names = weights and attempt(
        lambda: _require_weights(architecture, config, n_positions, vocab_size, weights, source)
    )
    raise_all(problems)
    for remark in tokenizer.remarks:
        report(remark)
    # The names of options are those of the settings, which the tokenizer decides as well.
    config.tokenizer = _tokenizer_settings(tokenizer.name, source)
    choices["tokenizer"] = tokenizer.name
    return _Found(
        source, architecture, config, choices, vocab_size, n_positions, context_length, weights, names, tokenizer
    )


def _settings(
    architecture: Architecture, config_json: dict[str, Any], context_length: int | None, where: str, report: Report
) -> tuple[Config, dict[str, str], int, int]:
    """Return the settings, the choices of options, the number of positions in the weights, and the vocabulary size."""
    settings = architecture.read(config_json, where)
    vocab_size = config_json.get("vocab_size")
    if type(vocab_size) is not int or not 1 <= vocab_size <= MAX_VOCAB_SIZE:
        raise RunError(f"vocab_size is {vocab_size!r}, not a whole number from 1 to {MAX_VOCAB_SIZE:,}", where=where)
    n_positions = settings["size.context_length"]
    if context_length is not None:
        settings["size.context_length"] = context_length
    overrides = [f"{key}={_format(value)}" for key, value in settings.items()]
    try:
        command = compose_command([f"model={architecture.option}", "mask=causal", *overrides])
        config = command.config
        raise_all(check(config, MODEL_CHECKS))
    except NanolmError as error:
        raise RunError(
            f"config.json describes a model that cannot be built: {error.found}",
            where=where,
            hint="check that it is the model's own file",
        ) from error
    assert isinstance(config.model, TransformerConfig)
    if context_length is not None and context_length != n_positions:
        is_learned = config.model.positions is Positions.learned
        if context_length > n_positions and is_learned:
            raise SettingsError(
                f"the model has {n_positions:,} learned positions, and --context-length is {context_length:,}",
                where="--context-length",
                hint=f"1 to {n_positions}",
            )
        action = "cropped" if context_length < n_positions else "extended beyond the positions of its training"
        report(f"the context is {action}, from {n_positions:,} to {context_length:,} tokens")
    choices = {group: command.choices[group] for group in ("model", "mask")}
    return config, choices, n_positions, vocab_size


def _format(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _tokenizer_settings(name: str, source: SourceFolder) -> TokenizerConfig:
    """Return the settings of a tokenizer; a run reads its own tokenizer.json, and never the path."""
    return TOKENIZERS.schema(name)(**({"path": source.name} if name == "pretrained" else {}))


def _require_weights(
    architecture: Architecture,
    config: Config,
    n_positions: int,
    vocab_size: int,
    weights: Weights,
    source: SourceFolder,
) -> dict[str, str]:
    """Require that the files have exactly the tensors of the model; return the name in the files of each.

    Raises:
        RunError: with all tensors that are missing, unknown, or of another shape or dtype.
    """
    if config.size.n_layers > len(weights.tensors):
        raise RunError(
            f"config.json has {config.size.n_layers:,} layers, and the weights {len(weights.tensors):,} tensors",
            where=str(source.path),
            hint="check that config.json and the weights belong to the same model",
        )
    entries = _stored_entries(architecture, config, n_positions, vocab_size)
    expected = {part.name for entry in entries for part in entry.parts}
    names = {_full_name(name, weights, architecture.prefix): name for name in weights.tensors}
    ignored = {name for name in names if _BUFFERS.fullmatch(name)}
    if _is_tied(config):
        ignored.add(HEAD)
    shapes = {name: weights.tensors[stored].shape for name, stored in names.items()}
    require_tensors(entries, shapes, ignored, str(source.path))
    wrong = [
        f"{name} is {str(weights.tensors[names[name]].dtype).removeprefix('torch.')}"
        for name in sorted(expected)
        if weights.tensors[names[name]].dtype not in DTYPES
    ]
    if wrong:
        more = f"; and {len(wrong) - 20} more" if wrong[20:] else ""
        raise RunError(
            f"the weights have a number format that is not supported: {'; '.join(wrong[:20])}{more}",
            where=str(source.path),
            hint="use weights in float32, float16 or bfloat16",
        )
    return names


def _full_name(name: str, weights: Weights, prefix: str) -> str:
    """Return the name of a tensor with its prefix, which files of the model without its head lack."""
    has_prefix = any(other.startswith(prefix) for other in weights.tensors)
    return name if has_prefix or name == HEAD else f"{prefix}{name}"


def _stored_entries(architecture: Architecture, config: Config, n_positions: int, vocab_size: int) -> list[Entry]:
    """Return the tensors in the files, whose position embedding may be longer than the context of the run."""
    stored = dataclasses.replace(config, size=dataclasses.replace(config.size, context_length=n_positions))
    return ENTRIES[architecture.name](stored, vocab_size)


def _is_tied(config: Config) -> bool:
    assert isinstance(config.model, TransformerConfig)
    return config.model.tie_embeddings


def _write(found: _Found, run: RunDirectory, hashes: dict[str, Future[str]]) -> Summary:
    """Write the files of the run; config.yaml last, which marks it as one."""
    config, tokenizer = found.config, found.tokenizer.tokenizer
    write_durably(run.tokenizer, tokenizers.to_text(config.tokenizer.name, tokenizer).encode())
    fingerprint = tokenizers.fingerprint(config.tokenizer.name, tokenizer)
    about: dict[str, Any] = {
        "identity": identity(config),
        "tokenizer": fingerprint,
        "versions": provenance.versions(),
    }
    entries = _stored_entries(found.architecture, config, found.n_positions, found.vocab_size)
    entries.sort(key=lambda entry: entry.name)
    length = {"position_embedding.weight": config.size.context_length}
    shapes = {entry.name: (length.get(entry.name, entry.shape[0]), *entry.shape[1:]) for entry in entries}
    facts = {**about, "settings": recorded(config)}
    write_weights(run.checkpoints, shapes, _tensors(found, entries, shapes), facts)
    summary = Summary(
        status="completed",
        kind=IMPORTED,
        step=0,
        has_checkpoint=True,
        choices=found.choices,
        parameters=count.total(count.parameters(config, found.vocab_size)),
        flops_per_token=count.training_flops_per_token(config, found.vocab_size),
        vocab_size=found.vocab_size,
        lossless=tokenizer.lossless,
        imported={
            "source": found.source.name,
            **({} if found.source.revision is None else {"revision": found.source.revision}),
            "architecture": found.architecture.name,
            **({} if found.context_length is None else {"context_length": found.context_length}),
            "files": {name: future.result() for name, future in hashes.items()},
        },
        **about,
    )
    write_summary(run.summary, summary)
    write_durably(run.config, save_yaml(config).encode())
    return summary


def _tensors(
    found: _Found, entries: list[Entry], shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights one at a time, and give back the memory of each once it is written."""
    used: list[str] = []

    def read(name: str) -> torch.Tensor:
        used.append(found.names[name])
        return found.weights.tensor(found.names[name])

    for name, tensor in import_tensors(entries, read):
        yield name, tensor[: shapes[name][0]]
        del tensor
        for stored in used:
            found.weights.release(stored)
        used.clear()
