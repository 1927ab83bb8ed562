"""The `nanolm` command: a table of its commands, each in a module of nanolm.cli that is imported only when it runs."""

from __future__ import annotations

import contextlib
import importlib
import keyword
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple, NoReturn

from nanolm import signals, terminal
from nanolm.errors import NanolmError, RankError, SettingsError, explain_os_error, nearest
from nanolm.option_types import Parser
from nanolm.torchrun import rank, world_size


class Command(NamedTuple):
    """What `nanolm --help` prints about a command."""

    summary: str
    example: str


HELP_FLAGS = ("-h", "--help")

# `data show` is nanolm/cli/data_show.py, `import` is import_.py, and so on: each module has add_arguments(parser) and
# run(arguments), which returns the exit status, or None for 0.
COMMANDS = {
    "train": Command(
        "train a model, or resume a run",
        "nanolm train dataset=tiny_shakespeare model=gpt size=tiny trainer.max_steps=2000",
    ),
    "generate": Command(
        "generate text from a prompt", 'nanolm generate outputs/RUN --prompt "To be" --max-new-tokens 200'
    ),
    "playground": Command(
        "open a local page on which models write, with probabilities and attention",
        "nanolm playground outputs/RUN outputs/OTHER_RUN",
    ),
    "evaluate": Command("compute the exact loss of a run on a split", "nanolm evaluate outputs/RUN --split val --json"),
    "import": Command(
        "make a run of a model in the format of Hugging Face transformers", "nanolm import gpt2 --to outputs/gpt2"
    ),
    "export": Command(
        "write a run as a folder that Hugging Face transformers opens",
        "nanolm export outputs/RUN --to my_model --dtype bfloat16",
    ),
    "report": Command("write an HTML report on runs that opens offline", "nanolm report outputs -o report.html"),
    "checkpoints": Command(
        "list the checkpoints of a run and verify their checksums", "nanolm checkpoints outputs/RUN"
    ),
    "data prepare": Command(
        "tokenize a dataset ahead of training, into the cache",
        "nanolm data prepare dataset=tiny_shakespeare tokenizer=char",
    ),
    "data show": Command(
        "show what a model is trained on: token counts, vocabulary, first tokens, a batch",
        "nanolm data show dataset=tiny_shakespeare tokenizer=char trainer.sampling=lines",
    ),
    "mask show": Command(
        "draw the attention mask of each layer",
        "nanolm mask show mask=banded_causal mask.window=4 mask.pattern=SSSL --length 24",
    ),
    "schedule show": Command(
        "plot the learning rate schedule", "nanolm schedule show scheduler=trapezoid trainer.max_steps=5000"
    ),
    "count": Command(
        "count parameters, FLOPs per token and training memory, by formula",
        "nanolm count model=gpt2 size=gpt2 --vocab-size 50257",
    ),
    "compare": Command(
        "compare runs: settings, results and the significance of differences",
        "nanolm compare outputs/SWEEP --by model --target 1.88",
    ),
    "scaling": Command(
        "fit the loss of runs as a power law of parameters and tokens", "nanolm scaling outputs/sweep_scaling"
    ),
    "runs": Command(
        "list runs with their status and best validation loss",
        "nanolm runs --status completed --where model=gpt --where lr=1e-3 --sort best_val_loss",
    ),
    "sweep status": Command(
        "show which jobs of a sweep are done, running, failed and left, and when it will end",
        "nanolm sweep status outputs/sweep --watch",
    ),
    "diff": Command("show the settings in which two runs differ", "nanolm diff outputs/RUN outputs/OTHER_RUN"),
    "wandb push": Command(
        "upload complete runs to Weights & Biases", "nanolm wandb push outputs/sweep_lr --project rates"
    ),
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    Exit status: 0 success, 1 failure, 2 a mistake in the command line, 128 + N stopped by signal N (training is saved
    first), 141 the reader of the output has closed it.
    """
    terminal.prepare()
    status: object
    try:
        try:
            # torchrun stops its processes by signals; raising in one of them would leave the others waiting for it.
            with signals.raised() if world_size() == 1 else contextlib.nullcontext():
                status = run(list(sys.argv[1:] if arguments is None else arguments))
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
    except NanolmError as error:
        status = _print_error(error)
    except KeyboardInterrupt:
        status = 130
    except signals.Stopped as stopped:
        status = 128 + stopped.number
    except BrokenPipeError:
        status = 141
    except OSError as error:
        status = _print_error(explain_os_error(error))
    finally:
        # Python drops what is left in the buffer of a failed stream when it exits.
        terminal.ignore_write_errors()
    raise SystemExit(status)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit status.

    Raises:
        NanolmError: the command line has a mistake, or the command failed.
    """
    if not arguments or arguments[0] in (*HELP_FLAGS, "help"):
        print(_help(), end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"nanolm {version('nanolm')}")
        return 0
    name, *rest = arguments
    group = [command for command in COMMANDS if command.startswith(f"{name} ")]
    if group and (not rest or rest[0] in HELP_FLAGS):
        print("".join(f"nanolm {command:<13}  {COMMANDS[command].summary}\n" for command in group), end="")
        return 0
    if group:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name not in COMMANDS:
        known = {command.split()[-1] for command in group} or {command.split()[0] for command in COMMANDS}
        hint = nearest(name.split()[-1], known)
        raise SettingsError(f"unknown command {name!r}", where="the command line", hint=hint)
    module = _module(name)
    if name == "train":  # Hydra parses its arguments.
        return module.run(rest)
    return module.run(make_parser(name).parse(rest)) or 0


def make_parser(name: str) -> Parser:
    """Build the parser of any command but train."""
    summary, example = COMMANDS[name]
    description = f"{summary[0].upper()}{summary[1:]}."
    parser = Parser(prog=f"nanolm {name}", description=description, epilog=f"example: {example}")
    _module(name).add_arguments(parser)
    return parser


def _module(name: str) -> ModuleType:
    module = name.replace(" ", "_")
    return importlib.import_module(f"nanolm.cli.{module}_" if keyword.iskeyword(module) else f"nanolm.cli.{module}")


def _help() -> str:
    lines = ["nanolm: train, study and compare small language models, from bigram to GPT.", ""]
    for name, command in COMMANDS.items():
        lines += [f"  nanolm {name:<13}  {command.summary}", f"{'':<24}  {command.example}"]
    lines += ["", "`nanolm COMMAND --help` lists the options. RUN is a directory written by `nanolm train`.", ""]
    return "\n".join(lines)


def _print_error(error: NanolmError) -> int:
    """Print an error and return its exit status; under torchrun, only rank 0 prints errors that all ranks share."""
    if rank() == 0 or isinstance(error, RankError):
        terminal.say(f"nanolm: {error}")
    return error.exit_status
