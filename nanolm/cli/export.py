"""`nanolm export`: write a run as a folder that other programs open."""

from __future__ import annotations

from argparse import Namespace

from nanolm.cli.arguments import add_weights, output_path
from nanolm.option_types import Parser


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "The folder has the weights, config.json, the tokenizer and a model card. model=gpt2, model=llama and "
        "model=gpt become architectures of Hugging Face transformers; other models need --format safetensors."
    )
    add_weights(parser, None, "best, last or a step (default: best; of a run that is being trained, last)")
    parser.add("--to", check=output_path, metavar="FOLDER", required=True, help="a new folder")
    parser.add_argument(
        "--format",
        default="huggingface",
        choices=["huggingface", "gguf", "safetensors"],
        help="huggingface: for transformers (default); gguf: one file for llama.cpp, of model=gpt2 and model=llama; "
        "safetensors: the weights of any model under nanolm's names, with its settings",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        help="of the weights (default: float32)",
    )


def run(arguments: Namespace) -> None:
    from nanolm import terminal
    from nanolm.interop.export import export

    written = export(
        arguments.run,
        arguments.to,
        format=arguments.format,
        checkpoint=arguments.checkpoint,
        weights=arguments.weights,
        dtype=arguments.dtype,
        plugins=arguments.plugins,
    )
    for remark in written.remarks:
        terminal.say(f"nanolm: {remark}")
    print(f"exported step {written.step:,} to {written.folder}")
