"""`nanolm generate`: generate text from a prompt."""

from __future__ import annotations

from argparse import Namespace

from nanolm import option_types as types
from nanolm import terminal
from nanolm.cli.arguments import add_checkpoint
from nanolm.option_types import Parser


def add_arguments(parser: Parser) -> None:
    add_checkpoint(parser)
    help_text = "text to continue; for a run of dataset=instructions, a message to respond to"
    parser.add("--prompt", check=types.text, required=True, help=help_text)
    parser.add("--max-new-tokens", check=types.COUNT, default=200, metavar="N", help="number of tokens")
    help_text = "softmax temperature; 0 is greedy decoding"
    parser.add("--temperature", check=types.TEMPERATURE, default=1.0, metavar="T", help=help_text)
    parser.add("--top-k", check=types.COUNT, metavar="K", help="sample from the K most likely tokens (default: all)")
    parser.add("--seed", check=types.SEED, default=0, metavar="N", help="seed of the sampling")
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


def run(arguments: Namespace) -> None:
    """Print the prompt and its continuation, or the response to the prompt."""
    from nanolm.inference.generate import generate
    from nanolm.inference.load import load_run

    text = generate(
        load_run(arguments.run, arguments.checkpoint, arguments.device, arguments.plugins, arguments.weights),
        arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
        stride=arguments.stride,
        use_cache=not arguments.no_cache,
        raw=arguments.raw,
    )
    terminal.write(text)
