"""`nanolm evaluate`: compute the exact loss of a run on a split."""

from __future__ import annotations

from argparse import Namespace

from nanolm import option_types as types
from nanolm.cli.arguments import add_checkpoint, add_dtype, add_json, add_overrides
from nanolm.json_text import dump_json
from nanolm.option_types import Parser
from nanolm.wording import LOSSY


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "Every token of the split is scored once, in order. Settings of the dataset choose another text than the "
        "run's: nanolm evaluate outputs/RUN dataset=text dataset.path=FILE."
    )
    add_checkpoint(parser)
    add_dtype(parser)
    add_overrides(parser, "dataset.key=value")
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
    from nanolm.inference.evaluate import chosen_dataset, evaluate
    from nanolm.inference.load import load_run
    from nanolm.inference.weight_formats import WeightFormat

    dataset = chosen_dataset(arguments.run, arguments.overrides, arguments.config_dir)
    loaded = load_run(
        arguments.run,
        arguments.checkpoint,
        arguments.device,
        arguments.plugins,
        arguments.weights,
        WeightFormat(arguments.dtype),
    )
    result = evaluate(loaded, arguments.split, arguments.stride, arguments.download, dataset)
    if arguments.json:
        print(dump_json({**result, "dtype": arguments.dtype}))
    else:
        print(
            f"{result['split']} loss {result['loss']:.4f} nats per token, {result['bits_per_byte']:.4f} bits per byte "
            f"over {result['tokens']:,} tokens (step {result['step']:,}, stride {result['stride']})"
            + ("" if arguments.dtype == "float32" else f", {arguments.dtype} weights")
            + ("" if result["lossless"] else f"; {LOSSY}")
        )
