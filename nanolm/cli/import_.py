"""`nanolm import`: make a run of a model in the Hugging Face format."""

from __future__ import annotations

from argparse import Namespace

from nanolm import option_types as types
from nanolm.cli.arguments import output_path
from nanolm.option_types import Parser


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "SOURCE is a folder with config.json, the weights (safetensors, or PyTorch's .bin) and the tokenizer, or a "
        "name on the hub, which needs the package huggingface_hub. The architectures GPT2LMHeadModel, LlamaForCausalLM "
        "and NanoChatForCausalLM are supported. Nothing in the files is executed."
    )
    parser.add("source", check=types.text, metavar="SOURCE", help="a folder, or a name on the hub, such as gpt2")
    parser.add("--to", check=output_path, metavar="RUN", required=True, help="the new run directory")
    parser.add("--revision", check=types.text, metavar="NAME", help="branch, tag or commit on the hub (default: main)")
    parser.add(
        "--context-length",
        check=types.COUNT,
        metavar="N",
        help="context length of the run; learned positions are cropped to it (default: the model's)",
    )


def run(arguments: Namespace) -> None:
    """Import the model, and print where it is."""
    from nanolm import terminal
    from nanolm.interop.import_model import import_model

    summary = import_model(
        arguments.source,
        arguments.to,
        arguments.revision,
        arguments.context_length,
        lambda remark: terminal.say(f"nanolm: {remark}"),
    )
    assert summary.imported is not None
    print(
        f"imported {summary.imported['architecture']} with {summary.parameters:,} parameters and "
        f"{summary.vocab_size:,} tokens to {arguments.to}"
    )
