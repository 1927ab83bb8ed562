"""`nanolm evaluate`: compute the exact loss of a run on a split."""

from __future__ import annotations

from argparse import Namespace

from nanolm import option_types as types
from nanolm.cli.arguments import add_checkpoint, add_json
from nanolm.json_text import dump_json
from nanolm.option_types import Parser
from nanolm.wording import LOSSY


def add_arguments(parser: Parser) -> None:
    parser.describe("Every token of the split is scored once, in order.")
    add_checkpoint(parser)
    parser.add("--split", check=types.nonempty, default="val", help="train, val or test")
    parser.add(
        "--stride",
        check=types.COUNT,
        metavar="N",
        help="tokens scored per window: a smaller N gives each token more context (default: the context length)",
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="download the text from the address in the run's settings, if it is not in the cache",
    )
    add_json(parser)


def run(arguments: Namespace) -> None:
    from nanolm.inference.evaluate import evaluate
    from nanolm.inference.load import load_run

    loaded = load_run(arguments.run, arguments.checkpoint, arguments.device, arguments.plugins, arguments.weights)
    result = evaluate(loaded, arguments.split, arguments.stride, arguments.download)
    if arguments.json:
        print(dump_json(result))
    else:
        print(
            f"{result['split']} loss {result['loss']:.4f} nats per token, {result['bits_per_byte']:.4f} bits per byte "
            f"over {result['tokens']:,} tokens (step {result['step']:,}, stride {result['stride']})"
            + ("" if result["lossless"] else f"; {LOSSY}")
        )
