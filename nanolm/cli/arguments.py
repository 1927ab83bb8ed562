"""Arguments that several commands share, and what they stand for."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm import option_types as types
from nanolm import terminal
from nanolm.errors import SettingsError, raise_all
from nanolm.option_types import Parser

if TYPE_CHECKING:
    from nanolm.compose import ComposedCommand
    from nanolm.data.corpus import Corpus
    from nanolm.data.tokenizers import Tokenizer
    from nanolm.inference.load import Loaded


def add_run(parser: Parser) -> None:
    parser.add("run", check=types.nonempty, metavar="RUN", help="a run directory")


def add_checkpoint(parser: Parser) -> None:
    """Add RUN with the choice of its checkpoint, and how to load it."""
    add_weights(parser)
    parser.add("--device", check=types.device, default="auto", help="auto, cpu, cuda, cuda:N or mps")


def add_weights(parser: Parser, default: str | None = "best", help_text: str = "best, last or a step") -> None:
    """Add RUN with the choice of its checkpoint and of the weights in it."""
    add_run(parser)
    parser.add("--checkpoint", check=types.checkpoint, default=default, help=help_text)
    parser.add_argument(
        "--weights",
        default="trained",
        choices=["trained", "ema"],
        help="the weights as trained, or their exponential moving average (default: trained)",
    )
    add_plugins(parser)


def add_dtype(parser: Parser) -> None:
    """Add --dtype, the number format of the weights."""
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16", "int8"],
        help="number format of the weights; int8 is dynamic quantization (default: float32)",
    )


def load_for_generation(arguments: Namespace, path: str, checkpoint: str | None = None) -> Loaded:
    """Load a run with the options of `add_checkpoint` and `add_dtype`, laid out for fast generation.

    Args:
        checkpoint: instead of --checkpoint.

    Raises:
        NanolmError: as load_run.
    """
    from nanolm.inference.load import load_run
    from nanolm.inference.weight_formats import WeightFormat, transpose_large_layers

    loaded = load_run(
        path,
        checkpoint or arguments.checkpoint,
        arguments.device,
        arguments.plugins,
        arguments.weights,
        WeightFormat(arguments.dtype),
    )
    if loaded.device.type == "cpu":
        transpose_large_layers(loaded.model)
    return loaded


def add_runs(parser: Parser) -> None:
    """Add RUN_OR_FOLDER, one or more."""
    help_text = "run directories, or folders that contain run directories"
    parser.add("runs", check=types.nonempty, nargs="+", metavar="RUN_OR_FOLDER", help=help_text)


def add_plugins(parser: Parser) -> None:
    help_text = "your own modules that the runs were made with"
    parser.add("--plugins", check=types.nonempty, nargs="*", default=[], metavar="MODULE", help=help_text)


def add_overrides(parser: Parser, metavar: str = "key=value") -> None:
    """Add the overrides of a `nanolm train` command; `compose` composes them."""
    parser.add_argument("overrides", nargs="*", metavar=metavar, help="settings, as for `nanolm train`")
    parser.add("--config-dir", "-cd", check=types.nonempty, metavar="FOLDER", help="your own folder of YAML files")


def add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_png(parser: Parser) -> None:
    help_text = "also write the picture as PNG (needs matplotlib)"
    parser.add("--png", check=_output_file, metavar="FILE", help=help_text)


def output_path(value: str) -> Path:
    """Return a path to write to.

    Raises:
        SettingsError: the path is empty.
        RunError: it is a part of a run.
    """
    from nanolm.runs.occupancy import require_outside_runs

    path = types.path(value)
    require_outside_runs(path, "nanolm does not overwrite the files of a run")
    return path


def _output_file(value: str) -> Path:
    path = output_path(value)
    if path.is_dir():
        raise SettingsError(f"is {types.quote(value)}, which is a folder", hint="name a file")
    return path


def compose(arguments: Namespace) -> ComposedCommand:
    """Compose the overrides of a command, and check the settings.

    Raises:
        SettingsError: with every mistake in them.
    """
    from nanolm.compose import compose_command
    from nanolm.config.checks import check

    line = compose_command(arguments.overrides, arguments.config_dir)
    raise_all(check(line.config))
    return line


def load_dataset(arguments: Namespace) -> tuple[ComposedCommand, Corpus, Tokenizer]:
    """Compose the overrides of a command, load the text and fit the tokenizer.

    Raises:
        NanolmError: the settings have mistakes, or the text cannot be read.
    """
    from nanolm.data import corpus as corpora
    from nanolm.data.tokens.cache import fit_tokenizer

    line = compose(arguments)
    corpus = corpora.load(line.config.dataset)
    for note in corpus.notes:
        terminal.say(f"nanolm: {note}")
    return line, corpus, fit_tokenizer(corpus, line.config)
