"""`nanolm export`: write a run as a folder that other programs open."""

from __future__ import annotations

from argparse import Namespace

from nanolm.cli.arguments import add_checkpoint, output_path
from nanolm.option_types import Parser


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "The folder has the weights, config.json, the tokenizer and a model card. model=gpt2, model=llama and "
        "model=gpt become architectures of Hugging Face transformers; other models need --format safetensors."
    )
    add_checkpoint(parser)
    parser.add("--to", check=output_path, metavar="FOLDER", required=True, help="a new folder")
    parser.add_argument(
        "--format",
        default="huggingface",
        choices=["huggingface", "safetensors"],
        help="for transformers, or the weights under nanolm's names with its settings (default: huggingface)",
    )
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="of the weights (default: float32)"
    )


def run(arguments: Namespace) -> None:
    from nanolm import terminal
    from nanolm.config.fields import flat
    from nanolm.inference.load import load_run
    from nanolm.interop.export import export
    from nanolm.report.reproduce import command

    loaded = load_run(arguments.run, arguments.checkpoint, "cpu", arguments.plugins, arguments.weights)
    line = command(flat(loaded.config), loaded.run.read_summary().choices)
    for remark in export(loaded, arguments.to, arguments.format, arguments.dtype, line or ""):
        terminal.say(f"nanolm: {remark}")
    print(f"exported step {loaded.step:,} to {arguments.to}")
