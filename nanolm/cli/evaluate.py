"""`nanolm evaluate`: compute the exact loss of a run on a split."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from nanolm import option_types as types
from nanolm.cli.arguments import add_checkpoint, add_json, add_overrides
from nanolm.errors import SettingsError, raise_all
from nanolm.json_text import dump_json
from nanolm.option_types import Parser
from nanolm.wording import LOSSY

if TYPE_CHECKING:
    from nanolm.config.dataset import DatasetConfig


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "Every token of the split is scored once, in order. Settings of the dataset choose another text than the "
        "run's: nanolm evaluate outputs/RUN dataset=text dataset.path=FILE."
    )
    add_checkpoint(parser)
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
    from nanolm.inference.evaluate import evaluate
    from nanolm.inference.load import load_run

    dataset = _dataset(arguments) if arguments.overrides else None
    loaded = load_run(arguments.run, arguments.checkpoint, arguments.device, arguments.plugins, arguments.weights)
    result = evaluate(loaded, arguments.split, arguments.stride, arguments.download, dataset)
    if arguments.json:
        print(dump_json(result))
    else:
        print(
            f"{result['split']} loss {result['loss']:.4f} nats per token, {result['bits_per_byte']:.4f} bits per byte "
            f"over {result['tokens']:,} tokens (step {result['step']:,}, stride {result['stride']})"
            + ("" if result["lossless"] else f"; {LOSSY}")
        )


def _dataset(arguments: Namespace) -> DatasetConfig:
    """Return the dataset of the overrides, over that of the run.

    Raises:
        SettingsError: the overrides have mistakes, or set something else.
    """
    from nanolm.compose import compose_command
    from nanolm.config.checks import check
    from nanolm.config.checks.dataset import check_dataset
    from nanolm.runs.directory import RunDirectory

    saved = RunDirectory(arguments.run).require().config
    command = compose_command(arguments.overrides, arguments.config_dir, saved=saved)
    if others := sorted(key for key in command.given if not key.startswith("dataset.")):
        raise SettingsError(
            f"evaluating changes the dataset only, and not {', '.join(others)}",
            where="the command line",
            hint="leave out the other settings",
        )
    raise_all(check(command.config, (check_dataset,)))
    return command.config.dataset
