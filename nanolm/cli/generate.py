"""`nanolm generate`: generate text from a prompt."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from nanolm import option_types as types
from nanolm.cli.arguments import add_checkpoint, add_dtype, add_json, load_for_generation
from nanolm.errors import SettingsError, raise_all
from nanolm.option_types import Parser

if TYPE_CHECKING:
    from nanolm.inference.engine import Engine
    from nanolm.inference.settings import GenerationSettings


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "On a terminal the text appears as it is generated. The samplers apply in this order: repetition penalty, "
        "temperature, top-k, top-p, min-p."
    )
    add_checkpoint(parser)
    add_dtype(parser)
    help_text = (
        "text to continue; for a run of dataset=instructions, a message to respond to (default: none; the text starts "
        "from <eos>, or from a line end)"
    )
    parser.add("--prompt", check=types.utf8, metavar="TEXT", help=help_text)
    parser.add("--samples", check=types.SAMPLES, default=1, metavar="N", help="number of texts, with seeds from --seed")
    parser.add("--max-new-tokens", check=types.COUNT, default=200, metavar="N", help="number of tokens")
    help_text = "softmax temperature; 0 is greedy decoding"
    parser.add("--temperature", check=types.TEMPERATURE, default=1.0, metavar="T", help=help_text)
    parser.add("--top-k", check=types.COUNT, metavar="K", help="sample from the K most likely tokens (default: all)")
    help_text = "sample from the most likely tokens whose probabilities sum to P (default: all)"
    parser.add("--top-p", check=types.TOP_P, metavar="P", help=help_text)
    help_text = "sample from the tokens at least P times as likely as the most likely one (default: all)"
    parser.add("--min-p", check=types.MIN_P, metavar="P", help=help_text)
    help_text = "divide the positive logits of tokens that the text already has by this, multiply the negative ones"
    parser.add("--repetition-penalty", check=types.REPETITION_PENALTY, default=1.0, metavar="X", help=help_text)
    parser.add("--seed", check=types.SEED, default=0, metavar="N", help="seed of the sampling")
    help_text = "end the text in front of any of these texts"
    parser.add("--stop", check=_stop_text, nargs="+", default=[], metavar="TEXT", help=help_text)
    help_text = "continue after an end-of-text token, such as <|endoftext|>"
    parser.add_argument("--ignore-eos", action="store_true", help=help_text)
    help_text = "also print the log-probability of every token, before any sampler"
    parser.add_argument("--logprobs", action="store_true", help=help_text)
    help_text = "with --logprobs or --json, also the N most likely tokens at every position"
    parser.add("--alternatives", check=types.ALTERNATIVES, default=0, metavar="N", help=help_text)
    add_json(parser)
    parser.add_argument("--interactive", action="store_true", help="continue one prompt after another")
    help_text = "also generate with this run, with the same seed, and print both side by side"
    parser.add("--compare", check=types.nonempty, metavar="RUN2", help=help_text)
    help_text = "generate again from every new checkpoint, until the training of the run ends"
    parser.add_argument("--watch", action="store_true", help=help_text)
    parser.add(
        "--stride",
        check=types.COUNT,
        metavar="N",
        help="tokens dropped at once when the context is full (default: a quarter of the context)",
    )
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, also for a run of dataset=instructions"
    )
    parser.add_argument("--no-cache", action="store_true", help="recompute the whole context for every token")


def _stop_text(value: str) -> str:
    if not value:
        raise SettingsError("is empty", hint="give it a text of at least one character, such as --stop $'\\n'")
    return types.utf8(value)


def run(arguments: Namespace) -> None:
    """Print the prompt and its continuation, or the response to the prompt.

    Raises:
        SettingsError: options exclude each other, or are out of range for this run.
    """
    raise_all(list(_conflicts(arguments)))
    # `text_output` imports torch.
    from nanolm.cli import text_output

    if arguments.interactive:
        text_output.interact(_load(arguments, arguments.run), _settings(arguments), arguments)
    elif arguments.watch:
        text_output.watch(lambda: _load(arguments, arguments.run, "last"), _settings(arguments), arguments)
    elif arguments.compare is not None:
        engines = [_load(arguments, path) for path in (arguments.run, arguments.compare)]
        text_output.compare(engines, _settings(arguments), arguments)
    else:
        text_output.write(_load(arguments, arguments.run), _settings(arguments), arguments)


def _conflicts(arguments: Namespace) -> list[SettingsError]:
    """Return an error for every pair of options that exclude each other."""
    pairs = (
        ("--interactive", "--watch"),
        ("--interactive", "--compare"),
        ("--interactive", "--json"),
        ("--interactive", "--prompt"),
        ("--watch", "--compare"),
        ("--watch", "--checkpoint"),
    )
    given = {name: value for name, value in vars(arguments).items() if value not in (None, False)}
    if arguments.checkpoint == "best":
        given.pop("checkpoint")
    return [
        SettingsError(f"{first} and {second} exclude each other", where=f"{first}, {second}", hint="leave one out")
        for first, second in pairs
        if first.strip("-") in given and second.strip("-") in given
    ]


def _settings(arguments: Namespace) -> GenerationSettings:
    from nanolm.inference.settings import GenerationSettings

    return GenerationSettings(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed,
        stop=tuple(arguments.stop),
        ignore_eos=arguments.ignore_eos,
        stride=arguments.stride,
        use_cache=not arguments.no_cache,
        alternatives=arguments.alternatives,
    )


def _load(arguments: Namespace, path: str, checkpoint: str | None = None) -> Engine:
    from nanolm.inference.engine import Engine

    return Engine.of(load_for_generation(arguments, path, checkpoint), raw=arguments.raw)
