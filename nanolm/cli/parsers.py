"""The options of every command but `nanolm train`, whose words are Hydra's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanolm import option_types as types
from nanolm.option_types import Parser

# The commands of a group, with what each does.
DATA = {
    "prepare": "Tokenizes the text of a `nanolm train` line ahead of time, into the cache.",
    "show": "Prints what a model of a `nanolm train` line would see: counts, vocabulary, first tokens, a batch.",
}
MASK = {"show": "Draws the mask of a `nanolm train` line: which positions each layer lets a position see."}
SCHEDULE = {"show": "Draws the learning rate of a `nanolm train` line over its steps."}
WANDB = {"push": "Writes runs whole, from their metrics.jsonl, as records of Weights & Biases."}

JSON: dict[str, Any] = {"action": "store_true", "help": "one JSON object"}


def generate() -> Parser:
    """The parser of `nanolm generate`."""
    parser = _run_parser(
        "generate", "Lets a run write behind a prompt.", 'nanolm generate outputs/RUN --prompt "To be"'
    )
    parser.add("--prompt", check=types.text, required=True, help="the text to go on from")
    parser.add("--max-new-tokens", check=types.COUNT, default=200, metavar="N", help="how many tokens (200)")
    parser.add("--temperature", check=types.TEMPERATURE, default=1.0, metavar="T", help="0: the likeliest token (1.0)")
    parser.add("--top-k", check=types.COUNT, metavar="K", help="draw from the K likeliest tokens alone (all)")
    parser.add("--seed", check=types.SEED, default=0, metavar="N", help="another seed, another text (0)")
    parser.add(
        "--stride",
        check=types.COUNT,
        metavar="N",
        help="tokens dropped at once when the context is full (a quarter of it)",
    )
    parser.add_argument("--no-cache", action="store_true", help="compute the whole context for every token")
    return parser


def evaluate() -> Parser:
    """The parser of `nanolm evaluate`."""
    parser = _run_parser(
        "evaluate", "Scores every token of a split once, in order.", "nanolm evaluate outputs/RUN --split val --json"
    )
    parser.add("--split", check=types.nonempty, default="val", help="train, val or test (val)")
    parser.add(
        "--stride",
        check=types.COUNT,
        metavar="N",
        help="score N tokens at a time behind a full context: a smaller N gives each more context (context_length)",
    )
    parser.add_argument("--json", **JSON)
    return parser


def report() -> Parser:
    """The parser of `nanolm report`."""
    parser = Parser(
        prog="nanolm report",
        description="Writes one HTML file about runs, which opens offline: results, curves, settings, samples, "
        "attention and masks, and what it takes to repeat each. Needs plotly, and --png needs matplotlib.",
        epilog='for example: nanolm report outputs -o report.html --text "To be, or not" --layer 0 1 --png pictures',
    )
    _add_runs(parser, "runs", "run directories, or folders of them")
    parser.add("-o", "--output", check=types.path, default=Path("report.html"), metavar="FILE", help="(report.html)")
    parser.add("--png", check=types.path, metavar="FOLDER", help="write the pictures as PNG too, for a paper")
    parser.add(
        "--text",
        check=types.text,
        nargs="+",
        default=[],
        metavar="TEXT",
        help="what attention is shown over (the run's last sample)",
    )
    parser.add(
        "--layer", check=types.COUNT_OR_NONE, nargs="+", metavar="N", help="layers whose attention is shown (all)"
    )
    parser.add(
        "--maps",
        check=types.COUNT_OR_NONE,
        default=4,
        metavar="N",
        help="runs that have attention maps, best first (4; 0: none)",
    )
    _add_plugins(parser, "modules the runs were made with")
    return parser


def checkpoints() -> Parser:
    """The parser of `nanolm checkpoints`."""
    parser = Parser(
        prog="nanolm checkpoints",
        description="Lists the checkpoints of a run and reads every byte of them against its sha256. "
        "Exit status 1: one is damaged.",
        epilog="for example: nanolm checkpoints outputs/RUN",
    )
    parser.add("run", check=types.nonempty, metavar="RUN", help="a run directory")
    parser.add_argument("--json", **JSON)
    return parser


def data_prepare() -> Parser:
    """The parser of `nanolm data prepare`."""
    return _data("prepare")


def data_show() -> Parser:
    """The parser of `nanolm data show`."""
    parser = _data("show")
    parser.add("--tokens", check=types.COUNT, default=24, metavar="N", help="how many tokens to show (24)")
    parser.add_argument("--json", **JSON)
    return parser


def _data(command: str) -> Parser:
    return _line_parser(
        prog=f"nanolm data {command}",
        description=DATA[command],
        epilog=f"for example: nanolm data {command} dataset=tiny_shakespeare tokenizer=char trainer.sampling=lines",
    )


def mask_show() -> Parser:
    """The parser of `nanolm mask show`."""
    parser = _line_parser(
        prog="nanolm mask show",
        description=MASK["show"],
        epilog="for example: nanolm mask show mask=banded_causal mask.window=4 mask.pattern=SSSL --length 24",
    )
    parser.add("--length", check=types.COUNT, metavar="N", help="draw N positions (size.context_length)")
    parser.add(
        "--png", check=types.file_to_write, metavar="FILE", help="write the picture as PNG too (needs matplotlib)"
    )
    return parser


def schedule_show() -> Parser:
    """The parser of `nanolm schedule show`."""
    parser = _line_parser(
        prog="nanolm schedule show",
        description=SCHEDULE["show"],
        epilog="for example: nanolm schedule show scheduler=cosine_restarts scheduler.period=200",
    )
    parser.add("--png", check=types.file_to_write, metavar="FILE", help="write the curve as PNG too (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="one JSON object, with the lr of each step, or of a sample")
    return parser


def count() -> Parser:
    """The parser of `nanolm count`."""
    parser = _line_parser(
        prog="nanolm count",
        description="Parameters by part, FLOPs a token and memory to train; nothing is allocated, and no text is read.",
        epilog="for example: nanolm count model=gpt2 size=gpt2 --vocab-size 50257, or nanolm count experiment=gpt3",
    )
    parser.add(
        "--vocab-size", check=types.COUNT, metavar="N", help="how many tokens there are (the tokenizer's, if set)"
    )
    parser.add_argument("--json", **JSON)
    return parser


def compare() -> Parser:
    """The parser of `nanolm compare`."""
    parser = Parser(
        prog="nanolm compare",
        description="Lays runs side by side, from their directories alone. Runs that differ only by their seed are one "
        "row: mean and 95% interval.",
        epilog="for example: nanolm compare outputs/SWEEP --by model --target 1.88",
    )
    _add_runs(parser, "runs", "run directories, or folders that hold some")
    parser.add(
        "--metric",
        check=types.words,
        default=[],
        metavar="NAMES",
        help="the figures to show, the first being what is judged",
    )
    parser.add(
        "--sort",
        check=types.nonempty,
        metavar="COLUMN",
        help="a metric, from the best, or a setting, upward (what is judged)",
    )
    parser.add(
        "--by",
        check=types.words,
        default=[],
        metavar="KEYS",
        help="for each value of these settings the best of the others",
    )
    parser.add("--target", check=types.LOSS, metavar="LOSS", help="tokens and seconds to this validation loss")
    parser.add_argument(
        "--fit", action="store_true", help="fit the loss as a power law of parameters and tokens, in place of the table"
    )
    form = parser.add_mutually_exclusive_group()
    for name, help_text in (
        ("json", "one JSON object"),
        ("csv", "exact figures, a row a line"),
        ("markdown", "the whole table, for a page"),
    ):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, default="table", help=help_text)
    return parser


def runs() -> Parser:
    """The parser of `nanolm runs`."""
    parser = Parser(
        prog="nanolm runs",
        description="Lists the runs at and below a folder, the newest first.",
        epilog="for example: nanolm runs --status completed --where model=gpt --where lr=1e-3 --sort best_val_loss",
    )
    parser.add(
        "folder",
        check=types.nonempty,
        nargs="?",
        default="outputs",
        metavar="FOLDER",
        help="where to look (outputs)",
    )
    parser.add("--status", check=types.words, default=[], metavar="NAMES", help="only runs in these states")
    parser.add(
        "--where",
        check=types.nonempty,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only runs with this setting or choice",
    )
    parser.add(
        "--sort", check=types.nonempty, default="age", metavar="COLUMN", help="age, name, or any other column (age)"
    )
    parser.add_argument("--json", **JSON)
    return parser


def diff() -> Parser:
    """The parser of `nanolm diff`."""
    parser = Parser(
        prog="nanolm diff",
        description="The settings that two runs, or two config.yaml files, differ in; of runs also what they were made "
        "with and on.",
        epilog="for example: nanolm diff outputs/RUN outputs/OTHER_RUN",
    )
    parser.add("first", check=types.nonempty, metavar="A", help="a run directory or a config.yaml")
    parser.add("second", check=types.nonempty, metavar="B", help="another")
    parser.add_argument("--all", action="store_true", help="every setting, equal or not")
    parser.add_argument("--json", **JSON)
    return parser


def wandb_push() -> Parser:
    """The parser of `nanolm wandb push`."""
    parser = Parser(
        prog="nanolm wandb push",
        description=WANDB["push"]
        + " A run that was killed has all its rows there, which a record written live may lose.",
        epilog="for example: nanolm wandb push outputs/sweep_lr --project rates",
    )
    _add_runs(parser, "paths", "run directories, or folders that hold them")
    parser.add_argument("--offline", action="store_true", help="write into RUN/wandb, for `wandb sync` to send")
    for name, help_text in (
        ("project", "the project (the run's logger.project, else WANDB_PROJECT, else nanolm)"),
        ("entity", "whose project (the run's logger.entity, else WANDB_ENTITY, else the account's own)"),
        ("group", "the group (the run's logger.group, else the name of its sweep)"),
    ):
        parser.add(f"--{name}", check=types.text, metavar=name[0].upper(), help=help_text)
    parser.add_argument(
        "--keep-id",
        action="store_true",
        help="under the id of the record that the run has, in its place (a new id, and a record beside it)",
    )
    parser.add("--patience", check=types.SECONDS, default=30.0, metavar="S", help="seconds to wait for an answer (30)")
    return parser


def _line_parser(prog: str, description: str, epilog: str) -> Parser:
    """What every command on the settings of a `nanolm train` line takes."""
    parser = Parser(prog=prog, description=description, epilog=epilog)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings as `nanolm train` takes them")
    parser.add("--config-dir", "-cd", check=types.nonempty, metavar="FOLDER", help="your own folder of YAML files")
    return parser


def _run_parser(command: str, description: str, example: str) -> Parser:
    """What every command on a run has."""
    parser = Parser(prog=f"nanolm {command}", description=description, epilog=f"for example: {example}")
    parser.add("run", check=types.nonempty, metavar="RUN", help="a run directory")
    parser.add("--checkpoint", check=types.checkpoint, default="best", help="best, last, or a step (best)")
    parser.add_argument(
        "--weights",
        default="trained",
        choices=["trained", "ema"],
        help="as they were trained, or their moving average (trained)",
    )
    parser.add("--device", check=types.device, default="auto", help="auto, cpu, cuda, cuda:N, mps (auto)")
    _add_plugins(parser, "your own modules that the run was made with")
    return parser


def _add_runs(parser: Parser, name: str, help_text: str) -> None:
    parser.add(name, check=types.nonempty, nargs="+", metavar="RUN_OR_FOLDER", help=help_text)


def _add_plugins(parser: Parser, help_text: str) -> None:
    parser.add("--plugins", check=types.nonempty, nargs="*", default=[], metavar="MODULE", help=help_text)


# Every parser, by its command.
PARSERS: dict[str, Callable[[], Parser]] = {
    "generate": generate,
    "evaluate": evaluate,
    "report": report,
    "checkpoints": checkpoints,
    "data prepare": data_prepare,
    "data show": data_show,
    "mask show": mask_show,
    "schedule show": schedule_show,
    "count": count,
    "compare": compare,
    "runs": runs,
    "diff": diff,
    "wandb push": wandb_push,
}
