"""`nanolm count`: count parameters, FLOPs per token and training memory, by formula."""

from __future__ import annotations

import itertools
import re
from argparse import Namespace
from typing import Any

from nanolm import option_types as types
from nanolm.cli.arguments import add_json, add_overrides, add_png
from nanolm.compose import compose_command
from nanolm.config.budget import Budget
from nanolm.errors import SettingsError
from nanolm.json_text import dump_json
from nanolm.model.totals import SYMBOLS, count_model
from nanolm.option_types import Parser
from nanolm.wording import format_bytes


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "Nothing is allocated, and no text is read unless the budget depends on it (trainer.max_epochs). --coordinates "
        "builds models, for random tokens."
    )
    add_overrides(parser)
    help_text = "vocabulary size (default: the tokenizer's, if its settings give it)"
    parser.add("--vocab-size", check=types.COUNT, metavar="N", help=help_text)
    help_text = "instead, train models of several widths for a few steps, and compare their activations"
    parser.add_argument("--coordinates", action="store_true", help=help_text)
    parser.add("--steps", check=types.COUNT, default=4, metavar="N", help="optimizer steps of --coordinates")
    add_png(parser)
    add_json(parser)


def run(arguments: Namespace) -> None:
    line = compose_command(arguments.overrides, arguments.config_dir)
    if arguments.coordinates:
        from nanolm.cli import coordinates

        coordinates.run(arguments, line)
        return
    if arguments.png is not None:
        raise SettingsError("only --coordinates has a picture", where="--png", hint="add --coordinates")
    result = count_model(line, arguments.vocab_size)
    if arguments.json:
        print(dump_json(result))
    else:
        _print_tables(result)


def _print_tables(result: dict[str, Any]) -> None:
    from nanolm.tables import Console, Table, cell

    console = Console()
    sizes, parameters, flops, memory = (
        result[key] for key in ("sizes", "parameters", "flops_per_token", "memory_bytes")
    )
    console.print(cell(result["model"], "bold"), cell(f"of size {result['size']}"))
    formulas = " ".join(part["formula"] for part in [*parameters["parts"], *(flops["parts"] or [])])
    used = {"V", *re.findall(r"\b[A-Za-z]\b", formulas)}
    legend = (f"{name} {symbol} {sizes[name]:,}" for symbol, name in SYMBOLS.items() if symbol in used)
    console.print(cell(", ".join(legend), "dim"))
    table = Table(["part", "formula", "per layer", "parameters", "share"], "llrrr")
    for part in parameters["parts"]:
        table.add_row(*_cells(part), f"{part['amount'] / max(parameters['total'], 1):.1%}")
    table.add_section()
    table.add_row("total, P", "", "", f"{parameters['total']:,}", "", style="bold")
    has_adapters = parameters["trained"] < parameters["total"]
    if has_adapters:
        share = f"{parameters['trained'] / parameters['total']:.2%}"
        table.add_row("trained, A", "", "", f"{parameters['trained']:,}", share, style="bold")
    console.print(table)
    if flops["parts"] is None:
        console.print("no formula for the FLOPs and activations of a plugin's model\n")
    else:
        table = Table(["FLOPs per token", "formula", "per layer", "FLOPs"], "llrr")
        for part in flops["parts"]:
            table.add_row(*_cells(part))
        table.add_section()
        table.add_row("forward", "", "", f"{flops['forward']:,}", style="bold")
        formula = "2 forward + adapters" if has_adapters else "3 forward"
        table.add_row("training", formula, "", f"{flops['training']:,}", style="bold")
        console.print(table)
    _print_run(result["run"], console)
    table = Table(["training memory", "formula", "bytes", ""], "llrr")
    for part in memory["parts"]:
        name = f"{part['part']}, {memory['optimizer_name']}" if part["part"] == "optimizer" else part["part"]
        table.add_row(name, part["formula"], f"{part['amount']:,}", format_bytes(part["amount"]))
    if memory["optimizer"] is None:
        table.add_row(f"optimizer, {memory['optimizer_name']}", "unknown", "", "")
    activations, peak = memory["activations_estimate"], memory["peak_estimate"]
    if activations is not None:
        amount = activations["amount"]
        table.add_row("activations (est.)", activations["formula"], f"{amount:,}", format_bytes(amount))
        table.add_row("peak (est.)", "", f"{peak:,}", format_bytes(peak), style="bold")
    console.print(table)
    cache = memory["key_value_cache"]
    if cache is not None and cache["amount"]:
        table = Table(["generation memory", "formula", "bytes", ""], "llrr")
        table.add_row(cache["part"], cache["formula"], f"{cache['amount']:,}", format_bytes(cache["amount"]))
        console.print(table)
    if activations is not None:
        console.print(
            f"activations: estimate for micro-batches of {memory['batch_size']:,} sequences (B) of "
            f"{memory['context_length']:,} tokens (T), in\neager mode and {memory['precision']}; the loss takes 12 "
            "bytes per logit. Not all parts are live at the peak"
        )


def _print_run(run: dict[str, Any], console: Any) -> None:
    """Print the shapes of the batches of a run, and its tokens and FLOPs."""
    from nanolm.tables import Table

    tokens = "tokens and padding" if run["has_padding"] else "tokens"
    table = Table(["batches", "steps", f"{tokens} per step", tokens], "lrrr")
    for stage in run["batches"]:
        shape, n_steps = f"{stage['batch_size']:,} x {stage['context_length']:,}", stage["end"] - stage["start"]
        per_step = stage["batch_size"] * stage["context_length"]
        table.add_row(shape, f"{n_steps:,}", f"{per_step:,}", f"{n_steps * per_step:,}")
    table.add_section()
    flops = "" if run["flops"] is None else f", {run['flops']:.3g} FLOPs"
    (budget,) = itertools.starmap(Budget, run["budget"].items())
    of_budget = "" if budget.in_steps else f", {budget}"
    table.add_row(f"run{flops}{of_budget}", f"{run['steps']:,}", "", f"{run['tokens']:,}", style="bold")
    console.print(table)


def _cells(part: dict[str, Any]) -> tuple[str, str, str, str]:
    per_layer = f"{part['per_layer']:,}" if part["per_layer"] else ""
    return part["part"], part["formula"], per_layer, f"{part['amount']:,}"
