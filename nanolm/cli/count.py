"""`nanolm count`: what the model of a `nanolm train` line comes to, before anything is allocated or read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nanolm.compose import compose_line
from nanolm.config.checks import check
from nanolm.config.model import NgramConfig, TransformerConfig
from nanolm.config.run import Config
from nanolm.config.tokenizer import (
    BpeConfig,
    ByteConfig,
    Gpt2Config,
    SentencePieceConfig,
    TokenizerConfig,
    UnigramConfig,
)
from nanolm.config.trainer import Precision
from nanolm.errors import NanolmError, SettingsError, raise_all
from nanolm.json_text import dump_json
from nanolm.model import count
from nanolm.model.count import Part
from nanolm.runs.console import in_units

if TYPE_CHECKING:
    from rich.table import Table

# The letters of the formulas.
SYMBOLS = {
    "V": "vocab_size",
    "C": "d_model",
    "L": "n_layers",
    "T": "context_length",
    "n": "n_heads",
    "k": "d_key",
    "v": "d_value",
    "h": "d_ff",
}


def known_vocab_size(tokenizer: TokenizerConfig) -> int | None:
    """How many tokens there are, where that is known without the text; trained subwords may turn out fewer."""
    if tokenizer.name == ByteConfig.name:
        return 256
    if tokenizer.name == Gpt2Config.name:
        return 50_257
    if isinstance(tokenizer, BpeConfig | UnigramConfig | SentencePieceConfig):
        return tokenizer.vocab_size
    return None


def counted(overrides: Sequence[str], config_dir: str | None = None, vocab_size: int | None = None) -> dict[str, Any]:
    """What the model of this line comes to, as plain values.

    A plugin's model is built without memory, and only its parameters are counted: what has no formula is None.

    Args:
        overrides: as `nanolm train` takes them.
        config_dir: the user's own folder of YAML files.
        vocab_size: how many tokens there are; None takes it from the tokenizer's settings.

    Raises:
        SettingsError: the line is not as it must be, the vocabulary is not known, a plugin's model cannot be built, or
            the model is a table as large as its text makes it.
    """
    line = compose_line(overrides, config_dir)
    config = line.config
    problems = check(config)
    if config.model.name == NgramConfig.name:
        raise_all([*problems, _no_size(config)])
    if vocab_size is None:
        vocab_size = known_vocab_size(config.tokenizer)
    if vocab_size is None:
        problems.append(
            SettingsError(
                f"the vocabulary of tokenizer={line.choices['tokenizer']} is not known before its text is read",
                where="tokenizer",
                hint="give its size, as in --vocab-size 65; `nanolm data show` finds it out",
            )
        )
    elif vocab_size < 1:
        problems.append(SettingsError(f"--vocab-size is {vocab_size}", where="--vocab-size", hint="1 or more"))
    raise_all(problems)
    assert vocab_size is not None
    by_formula = count.has_formula(config)
    parts = count.parameters(config, vocab_size) if by_formula else _built_parts(config, vocab_size)
    n_parameters = count.total(parts)
    flops = count.flops_per_token(config, vocab_size) if by_formula else None
    forward = None if flops is None else count.total(flops)
    memory = count.memory(config, n_parameters, vocab_size)
    activations = count.activation_memory(config, vocab_size) if by_formula else None
    held = {part.name: part.amount for part in memory}
    return {
        "model": line.choices["model"],
        "size": line.choices["size"],
        "sizes": {
            "vocab_size": vocab_size,
            "d_model": config.size.d_model,
            "n_layers": config.size.n_layers,
            "n_heads": config.size.n_heads,
            "context_length": config.size.context_length,
            "d_key": config.size.key_width,
            "d_value": config.size.value_width,
            "d_ff": config.size.hidden_width(isinstance(config.model, TransformerConfig) and config.model.has_gate),
        },
        "parameters": {"parts": [_plain(part) for part in parts], "total": n_parameters},
        "flops_per_token": {
            "parts": None if flops is None else [_plain(part) for part in flops],
            "forward": forward,
            "training": None if forward is None else count.training_flops(forward),
        },
        "memory_bytes": {
            "parts": [_plain(part) for part in memory],
            "weights": held["weights"],
            "gradients": held["gradients"],
            "optimizer": held.get("optimizer"),
            "optimizer_name": config.optimizer.name,
            "activations_estimate": None if activations is None else _plain(activations),
            "peak_estimate": count.peak_memory(config, n_parameters, vocab_size) if by_formula else None,
            "batch_size": config.trainer.batch_size // config.trainer.gradient_accumulation,
            "precision": "fp32" if config.trainer.precision is Precision.auto else config.trainer.precision.name,
        },
    }


def show(
    overrides: Sequence[str], config_dir: str | None = None, vocab_size: int | None = None, as_json: bool = False
) -> None:
    """Prints what the model of this line comes to.

    Raises:
        SettingsError: as `counted`.
    """
    found = counted(overrides, config_dir, vocab_size)
    if as_json:
        print(dump_json(found))
        return
    from rich.text import Text

    from nanolm.tables import Console

    console = Console()
    sizes, parameters, flops, memory = (
        found[key] for key in ("sizes", "parameters", "flops_per_token", "memory_bytes")
    )
    console.print(Text.assemble((found["model"], "bold"), f" of size {found['size']}"))
    written = " ".join(part["formula"] for part in [*parameters["parts"], *(flops["parts"] or [])])
    used = {symbol for word in written.replace("(", " ").replace(")", " ").split() for symbol in word.split("^")}
    legend = (f"{name} {symbol} {sizes[name]:,}" for symbol, name in SYMBOLS.items() if symbol in {"V", *used})
    console.print(Text(", ".join(legend), "dim"))
    table = _table("part", "formula", "a layer", "parameters", "share")
    for part in parameters["parts"]:
        table.add_row(*_cells(part), f"{part['amount'] / max(parameters['total'], 1):.1%}")
    _close(table, "total, N", "", "", f"{parameters['total']:,}", "")
    console.print(table)
    if flops["parts"] is None:
        console.print("FLOPs and activations have no formula for a model of your own\n")
    else:
        table = _table("FLOPs a token", "formula", "a layer", "FLOPs")
        for part in flops["parts"]:
            table.add_row(*_cells(part))
        _close(table, "forward", "", "", f"{flops['forward']:,}")
        table.add_row("training", "3 forward", "", f"{flops['training']:,}", style="bold")
        console.print(table)
    table = _table("memory to train", "formula", "bytes", "")
    for part in memory["parts"]:
        name = f"{part['part']}, {memory['optimizer_name']}" if part["part"] == "optimizer" else part["part"]
        table.add_row(name, part["formula"], f"{part['amount']:,}", in_units(part["amount"]))
    if memory["optimizer"] is None:
        table.add_row(f"optimizer, {memory['optimizer_name']}", "not known", "", "")
    estimate = memory["activations_estimate"]
    if estimate is not None:
        table.add_row(
            "activations, about", estimate["formula"], f"{estimate['amount']:,}", in_units(estimate["amount"])
        )
        peak = memory["peak_estimate"]
        table.add_row("peak of a step, about", "", f"{peak:,}", in_units(peak), style="bold")
    console.print(table)
    if estimate is not None:
        console.print(
            f"activations: an estimate for micro-batches of {memory['batch_size']:,} sequences (B), in eager mode,"
        )
        console.print(
            f"in {memory['precision']}; the loss takes 12 bytes per logit. Not all parts are live at the peak"
        )


def _built_parts(config: Config, vocab_size: int) -> list[Part]:
    """The parameters of a plugin's model, by its submodules, from building it on the meta device."""
    import torch

    from nanolm.model.build import FittedModel, build

    try:
        with torch.device("meta"):
            model = build(config, vocab_size)
        if isinstance(model, FittedModel):
            raise _no_size(config)
        sizes: Counter[str] = Counter()
        for name, parameter in model.named_parameters():
            sizes[name.split(".")[0]] += parameter.numel()
    except NanolmError:
        raise
    except Exception as error:
        raise SettingsError(
            f"the model {config.model.name!r} has no formula, and cannot be built without memory to be counted: "
            f"{type(error).__name__}: {error}",
            where="model",
            hint='it is built under torch.device("meta"), where tensors have shapes and no values',
        ) from error
    return [Part(name, "built", amount) for name, amount in sizes.items()]


def _no_size(config: Config) -> SettingsError:
    return SettingsError(
        f"the model {config.model.name!r} is a table that is as large as its text makes it",
        where="model",
        hint=f"`nanolm train model={config.model.name}` counts it, and its summary.json says how many entries it has",
    )


def _plain(part: Part) -> dict[str, Any]:
    return {"part": part.name, "formula": part.formula, "per_layer": part.per_layer, "amount": part.amount}


def _cells(part: dict[str, Any]) -> tuple[str, str, str, str]:
    per_layer = f"{part['per_layer']:,}" if part["per_layer"] else ""
    return part["part"], part["formula"], per_layer, f"{part['amount']:,}"


def _table(*columns: str) -> Table:
    """Words to the left, figures to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < 2 else "right")
    return table


def _close(table: Table, *cells: str) -> None:
    table.add_section()
    table.add_row(*cells, style="bold")
