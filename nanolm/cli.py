"""The verbs. Nothing heavy is imported before it is known to be needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from nanolm.errors import NanolmError, RankError, SettingsError, nearest
from nanolm.launch import own_rank

HELP = """\
nanolm: train, study and compare small language models, from bigram to GPT.

  nanolm train        train a model, or go on with a run
                        nanolm train dataset=tiny_shakespeare model=gpt size=tiny trainer.max_steps=2000
  nanolm generate     let a run write
                        nanolm generate outputs/RUN --prompt "To be" --max-new-tokens 200
  nanolm evaluate     the exact loss of a run on a split
                        nanolm evaluate outputs/RUN --split val --json
  nanolm report       runs as one HTML file that opens offline: curves, settings, samples, attention
                        nanolm report outputs -o report.html
  nanolm checkpoints  the checkpoints of a run, every byte of them verified
                        nanolm checkpoints outputs/RUN
  nanolm data         what a model would see (show), and its tokens ahead of time (prepare)
                        nanolm data show dataset=tiny_shakespeare tokenizer=char
  nanolm mask         a picture of who sees whom, layer by layer (show)
                        nanolm mask show mask=banded_causal mask.pattern=SSSL
  nanolm schedule     lr over the steps, as a curve (show)
                        nanolm schedule show scheduler=trapezoid trainer.max_steps=5000
  nanolm count        parameters by part, FLOPs a token, memory to train, by formula
                        nanolm count model=gpt2 size=gpt2 --vocab-size 50257
  nanolm compare      runs side by side: what differs, what each came to, and which differ beyond chance
                        nanolm compare outputs/SWEEP --by model --target 1.88
  nanolm runs         the runs in outputs/, their state and best value
                        nanolm runs --status completed --where model=gpt --sort best_val_loss
  nanolm diff         the settings that two runs differ in
                        nanolm diff outputs/RUN outputs/OTHER_RUN
  nanolm wandb        the whole record of runs, to Weights & Biases (push)
                        nanolm wandb push outputs/RUN --offline

`nanolm VERB --help` says more. RUN is a directory that `nanolm train` made.
"""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a verb and exits: 0 done, 1 failed, 2 a mistake in what was asked, 130 and 143 stopped and saved."""
    try:
        status = run(list(sys.argv[1:] if arguments is None else arguments))
    except NanolmError as error:
        # What all ranks see is said by the first.
        if own_rank() == 0 or isinstance(error, RankError):
            print(f"nanolm: {error}", file=sys.stderr)
        status = error.exit_status
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Runs a verb; returns its exit status.

    Raises:
        NanolmError: what was asked cannot be done.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"nanolm {version('nanolm')}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise SettingsError(f"there is no verb {verb!r}", where="the command line", mend=nearest(verb, VERBS))
    return VERBS[verb](rest)


def train(arguments: list[str]) -> int:
    """`nanolm train`, whose words are Hydra's."""
    from nanolm import train_verb

    return train_verb.train(arguments)


def generate(arguments: list[str]) -> int:
    """`nanolm generate RUN --prompt TEXT`."""
    parser = _parser("generate", "Lets a run write behind a prompt.", 'nanolm generate outputs/RUN --prompt "To be"')
    parser.add_argument("--prompt", required=True, help="the text to go on from")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="how many tokens (200)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: the likeliest token (1.0)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens alone (all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another text (0)")
    parser.add_argument(
        "--stride", type=int, metavar="N", help="tokens dropped at once when the context is full (a quarter of it)"
    )
    parser.add_argument("--no-cache", action="store_true", help="compute the whole context for every token")
    options = parser.parse_args(arguments)

    from nanolm.generate import generate as write
    from nanolm.load import load_run

    loaded = load_run(options.run, options.checkpoint, options.device, options.plugins, options.weights)
    text = write(
        loaded,
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
        stride=options.stride,
        use_cache=not options.no_cache,
    )
    print(text)
    return 0


def evaluate(arguments: list[str]) -> int:
    """`nanolm evaluate RUN`."""
    parser = _parser(
        "evaluate",
        "Scores every token of a split once, in order.",
        "nanolm evaluate outputs/RUN --split val --json",
    )
    parser.add_argument("--split", default="val", help="train, val or test (val)")
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="score N tokens at a time behind a full context: a smaller N gives each more context (context_length)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)

    from nanolm.evaluate import evaluate as score
    from nanolm.json_text import dump_json
    from nanolm.load import load_run
    from nanolm.runs.console import LOSSY

    figures = score(
        load_run(options.run, options.checkpoint, options.device, options.plugins, options.weights),
        options.split,
        options.stride,
    )
    if options.json:
        print(dump_json(figures))
    else:
        print(
            f"{figures['split']} loss {figures['loss']:.4f} nats per token, {figures['bits_per_byte']:.4f} bits per "
            f"byte over {figures['tokens']:,} tokens (step {figures['step']:,}, stride {figures['stride']})"
            + ("" if figures["lossless"] else f"; {LOSSY}")
        )
    return 0


def report(arguments: list[str]) -> int:
    """`nanolm report RUN_OR_FOLDER ... -o FILE`."""
    parser = argparse.ArgumentParser(
        prog="nanolm report",
        description="Writes one HTML file about runs, which opens offline: results, curves, settings, samples, "
        "attention and masks, and what it takes to repeat each. Needs nanolm[report].",
        epilog='for example: nanolm report outputs -o report.html --text "To be, or not" --layer 0 1 --png pictures',
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_OR_FOLDER", help="run directories, or folders of them")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="(report.html)")
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="write the pictures as PNG too, for a paper")
    parser.add_argument(
        "--text", nargs="+", default=[], metavar="TEXT", help="what attention is shown over (the run's last sample)"
    )
    parser.add_argument("--layer", nargs="+", type=int, metavar="N", help="layers whose attention is shown (all)")
    parser.add_argument(
        "--maps",
        type=int,
        default=4,
        metavar="N",
        help="runs that have attention maps, best first (4; 0: none)",
    )
    parser.add_argument("--plugins", nargs="*", default=[], metavar="MODULE", help="modules the runs were made with")
    options = parser.parse_args(arguments)

    if options.maps < 0:
        raise SettingsError(f"--maps is {options.maps}", where="--maps", mend="0 or more")
    from nanolm.files import is_stdout
    from nanolm.report import verb

    said = verb.make(
        options.runs,
        options.output,
        png=options.png,
        texts=options.text,
        layers=options.layer,
        n_maps=options.maps,
        plugins=options.plugins,
    )
    print("\n".join(said), file=sys.stderr if is_stdout(options.output) else sys.stdout)
    return 0


def checkpoints(arguments: list[str]) -> int:
    """`nanolm checkpoints RUN`."""
    parser = argparse.ArgumentParser(
        prog="nanolm checkpoints",
        description="Lists the checkpoints of a run and reads every byte of them against its sha256. "
        "Exit status 1: one is damaged.",
        epilog="for example: nanolm checkpoints outputs/RUN",
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)

    from nanolm import checkpoint_verb

    return checkpoint_verb.show(options.run, options.json)


def data(arguments: list[str]) -> int:
    """`nanolm data prepare` and `nanolm data show`, with the settings of a `nanolm train` line."""
    verbs = {
        "prepare": "Tokenizes the text of a `nanolm train` line ahead of time, into the cache.",
        "show": "Prints what a model of a `nanolm train` line would see: counts, vocabulary, first tokens, a batch.",
    }
    verb, rest = _second_word("data", verbs, arguments)
    if verb is None:
        return 0
    parser = _line_parser(
        prog=f"nanolm data {verb}",
        description=verbs[verb],
        epilog=f"for example: nanolm data {verb} dataset=tiny_shakespeare tokenizer=char trainer.batches=lines",
    )
    if verb == "show":
        parser.add_argument("--tokens", type=int, default=24, metavar="N", help="how many tokens to show (24)")
        parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_intermixed_args(rest)

    from nanolm import data_verbs

    if verb == "prepare":
        data_verbs.print_prepared(options.overrides, options.config_dir)
        return 0
    if options.tokens < 1:
        raise SettingsError(f"--tokens is {options.tokens}", where="--tokens", mend="1 or more")
    data_verbs.show(options.overrides, options.config_dir, options.tokens, options.json)
    return 0


def mask(arguments: list[str]) -> int:
    """`nanolm mask show`, with the settings of a `nanolm train` line."""
    verbs = {"show": "Draws the mask of a `nanolm train` line: which positions each layer lets a position see."}
    verb, rest = _second_word("mask", verbs, arguments)
    if verb is None:
        return 0
    parser = _line_parser(
        prog=f"nanolm mask {verb}",
        description=verbs[verb],
        epilog="for example: nanolm mask show mask=banded_causal mask.window=4 mask.pattern=SSSL --length 24",
    )
    parser.add_argument("--length", type=int, metavar="N", help="draw N positions (size.context_length)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="write the picture as PNG too: nanolm[plot]")
    options = parser.parse_intermixed_args(rest)

    from nanolm import mask_verbs

    mask_verbs.show(options.overrides, options.config_dir, options.length, options.png)
    return 0


def schedule(arguments: list[str]) -> int:
    """`nanolm schedule show`, with the settings of a `nanolm train` line."""
    verbs = {"show": "Draws the learning rate of a `nanolm train` line over its steps."}
    verb, rest = _second_word("schedule", verbs, arguments)
    if verb is None:
        return 0
    parser = _line_parser(
        prog=f"nanolm schedule {verb}",
        description=verbs[verb],
        epilog="for example: nanolm schedule show scheduler=cosine_restarts scheduler.period=200",
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="write the curve as PNG too: nanolm[plot]")
    parser.add_argument("--json", action="store_true", help="one JSON object, with the lr of each step, or of a sample")
    options = parser.parse_intermixed_args(rest)

    from nanolm import schedule_verb

    schedule_verb.show(options.overrides, options.config_dir, options.png, options.json)
    return 0


def count(arguments: list[str]) -> int:
    """`nanolm count`, with the settings of a `nanolm train` line."""
    parser = _line_parser(
        prog="nanolm count",
        description="Parameters by part, FLOPs a token and memory to train; nothing is allocated, and no text is read.",
        epilog="for example: nanolm count model=gpt2 size=gpt2 --vocab-size 50257, or nanolm count experiment=gpt3",
    )
    parser.add_argument(
        "--vocab-size", type=int, metavar="N", help="how many tokens there are (the tokenizer's, if set)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_intermixed_args(arguments)

    from nanolm import count_verb

    count_verb.show(options.overrides, options.config_dir, options.vocab_size, options.json)
    return 0


def wandb(arguments: list[str]) -> int:
    """`nanolm wandb push RUN_OR_FOLDER ...`."""
    verbs = {"push": "Writes runs whole, from their metrics.jsonl, as records of Weights & Biases."}
    verb, rest = _second_word("wandb", verbs, arguments)
    if verb is None:
        return 0
    parser = argparse.ArgumentParser(
        prog=f"nanolm wandb {verb}",
        description=verbs[verb]
        + " A run that was killed has all its rows there, which a record written live may lose.",
        epilog="for example: nanolm wandb push outputs/sweep_lr --project rates",
    )
    parser.add_argument("paths", nargs="+", metavar="RUN_OR_FOLDER", help="run directories, or folders that hold them")
    parser.add_argument("--offline", action="store_true", help="write into RUN/wandb, for `wandb sync` to send")
    parser.add_argument("--project", metavar="P", help="the project (the run's logger.project, else nanolm)")
    parser.add_argument("--entity", metavar="E", help="whose project (the run's logger.entity, else the account's own)")
    parser.add_argument("--group", metavar="G", help="the group (the run's logger.group, else the name of its sweep)")
    parser.add_argument(
        "--keep-id",
        action="store_true",
        help="under the id of the record that the run has, in its place (a new id, and a record beside it)",
    )
    parser.add_argument("--patience", type=float, default=30.0, metavar="S", help="seconds to wait for an answer (30)")
    options = parser.parse_args(rest)
    if not options.patience > 0:
        raise SettingsError(f"--patience is {options.patience}", where="--patience", mend="more than 0")

    from nanolm import wandb_verb

    mode = "offline" if options.offline or os.environ.get("WANDB_MODE") == "offline" else "online"
    target = wandb_verb.Target(mode, options.project, options.entity, options.group, options.keep_id, options.patience)
    return wandb_verb.push(options.paths, target)


def _second_word(first: str, verbs: dict[str, str], arguments: list[str]) -> tuple[str | None, list[str]]:
    """The verb after the verb and the words after it; where help is asked for, prints it and returns None.

    Raises:
        SettingsError: there is no such verb.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print("".join(f"nanolm {first} {verb:<8} {what}\n" for verb, what in verbs.items()), end="")
        return None, []
    verb, *rest = arguments
    if verb not in verbs:
        raise SettingsError(f"there is no verb '{first} {verb}'", where="the command line", mend=nearest(verb, verbs))
    return verb, rest


def _line_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """What every verb on the settings of a `nanolm train` line takes."""
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings as `nanolm train` takes them")
    parser.add_argument("--config-dir", "-cd", metavar="FOLDER", help="your own folder of YAML files")
    return parser


def compare(arguments: list[str]) -> int:
    """`nanolm compare RUN_OR_FOLDER ...`."""
    parser = argparse.ArgumentParser(
        prog="nanolm compare",
        description="Lays runs side by side, from their directories alone. Runs that differ only by their seed are one "
        "row: mean and 95% interval.",
        epilog="for example: nanolm compare outputs/SWEEP --by model --target 1.88",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_OR_FOLDER", help="run directories, or folders that hold some")
    parser.add_argument(
        "--metric", type=_words, default=[], metavar="NAMES", help="the figures to show, the first being what is judged"
    )
    parser.add_argument(
        "--sort", metavar="COLUMN", help="a metric, from the best, or a setting, upward (what is judged)"
    )
    parser.add_argument(
        "--by", type=_words, default=[], metavar="KEYS", help="for each value of these settings the best of the others"
    )
    parser.add_argument("--target", type=float, metavar="LOSS", help="tokens and seconds to this validation loss")
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
    options = parser.parse_args(arguments)

    if options.fit:
        given = {"--metric": options.metric, "--sort": options.sort, "--by": options.by, "--target": options.target}
        words = [flag for flag, value in given.items() if value]
        words += [f"--{options.form}"] if options.form in ("csv", "markdown") else []
        if words:
            raise SettingsError(
                f"--fit prints a law, of which {', '.join(words)} says nothing",
                where=", ".join(words),
                mend="leave it out, or leave out --fit; --fit --json is known",
            )
        from nanolm import scaling_verb

        scaling_verb.show(options.runs, as_json=options.form == "json")
        return 0
    from nanolm import compare_verb

    compare_verb.compare(
        options.runs,
        metrics=options.metric,
        sort=options.sort,
        by=options.by,
        target=options.target,
        form=options.form,
    )
    return 0


def runs(arguments: list[str]) -> int:
    """`nanolm runs [FOLDER]`."""
    parser = argparse.ArgumentParser(
        prog="nanolm runs",
        description="Lists the runs at and below a folder, the newest first.",
        epilog="for example: nanolm runs --status completed --where model=gpt --where lr=1e-3 --sort best_val_loss",
    )
    parser.add_argument("folder", nargs="?", default="outputs", metavar="FOLDER", help="where to look (outputs)")
    parser.add_argument("--status", type=_words, default=[], metavar="NAMES", help="only runs in these states")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this setting or choice"
    )
    parser.add_argument("--sort", default="age", metavar="COLUMN", help="age, name, or any other column (age)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)

    from nanolm import runs_verb

    runs_verb.show(options.folder, options.status, options.where, options.sort, options.json)
    return 0


def diff(arguments: list[str]) -> int:
    """`nanolm diff A B`."""
    parser = argparse.ArgumentParser(
        prog="nanolm diff",
        description="The settings that two runs, or two config.yaml files, differ in; of runs also what they were made "
        "with and on.",
        epilog="for example: nanolm diff outputs/RUN outputs/OTHER_RUN",
    )
    parser.add_argument("first", metavar="A", help="a run directory or a config.yaml")
    parser.add_argument("second", metavar="B", help="another")
    parser.add_argument("--all", action="store_true", help="every setting, equal or not")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)

    from nanolm import diff_verb

    diff_verb.show(options.first, options.second, options.all, options.json)
    return 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _parser(verb: str, description: str, example: str) -> argparse.ArgumentParser:
    """The flags that every verb on a run has."""
    parser = argparse.ArgumentParser(prog=f"nanolm {verb}", description=description, epilog=f"for example: {example}")
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--checkpoint", default="best", help="best, last, or a step (best)")
    parser.add_argument(
        "--weights",
        default="trained",
        choices=["trained", "ema"],
        help="as they were trained, or their moving average (trained)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps (auto)")
    parser.add_argument(
        "--plugins",
        nargs="*",
        default=[],
        metavar="MODULE",
        help="your own modules that the run was made with",
    )
    return parser


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "generate": generate,
    "evaluate": evaluate,
    "report": report,
    "checkpoints": checkpoints,
    "data": data,
    "mask": mask,
    "schedule": schedule,
    "count": count,
    "compare": compare,
    "runs": runs,
    "diff": diff,
    "wandb": wandb,
}
