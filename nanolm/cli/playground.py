"""`nanolm playground`: serve a local page on which models write."""

from __future__ import annotations

import threading
import webbrowser
from argparse import Namespace

from nanolm import option_types as types
from nanolm import terminal
from nanolm.cli.arguments import add_checkpoint, add_dtype, load_for_generation
from nanolm.errors import NanolmError, raise_all
from nanolm.option_types import Parser

DEFAULT_PORT = 8765
_PORT = types.Number(int, 0, 65535, "a whole number from 1024 to 65535, or 0 for any free port")


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "On the page a model writes token by token, and shows the probability of each token, the alternatives and the "
        "attention. It is served to this machine only, at an address that nobody else knows; Ctrl-C ends the server."
    )
    add_checkpoint(parser)
    parser.add("run2", check=types.nonempty, nargs="?", metavar="RUN2", help="a run to write beside it")
    add_dtype(parser)
    help_text = "port of the address; if it is taken, the next free one is used"
    parser.add("--port", check=_PORT, default=DEFAULT_PORT, metavar="N", help=help_text)
    parser.add_argument("--open", action="store_true", help="also open the page in a browser")
    parser.add_argument(
        "--raw", action="store_true", help="continue prompts as they are, also for runs of dataset=instructions"
    )


def run(arguments: Namespace) -> None:
    """Print the address of the page and serve it until a signal ends the command.

    Raises:
        NanolmError: a run cannot be loaded, or there is no free port.
    """
    loaded, problems = [], []
    for path in filter(None, (arguments.run, arguments.run2)):
        try:
            loaded.append(load_for_generation(arguments, path))
        except NanolmError as error:
            problems.append(error)
    raise_all(problems)
    # It imports torch.
    from nanolm.playground.server import PlaygroundServer
    from nanolm.playground.session import playground_runs

    server = PlaygroundServer(playground_runs(loaded, raw=arguments.raw), arguments.port)
    try:
        if arguments.port not in (0, server.server_port):
            terminal.say(f"nanolm: port {arguments.port} is taken; using {server.server_port}")
        terminal.write(server.url)
        terminal.say("nanolm: the page is open to this machine only; Ctrl-C ends it")
        if arguments.open:
            # A browser in the terminal returns when it is closed.
            threading.Thread(target=_open, args=(server.url,), daemon=True).start()
        server.serve_forever()
    finally:
        server.close()


def _open(url: str) -> None:
    if not webbrowser.open(url):
        terminal.say("nanolm: no browser was found; open the address yourself")
