"""The verbs. Nothing heavy is imported before it is known to be needed."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nanolm.errors import NanolmError, RankError, RunError, SettingsError, nearest
from nanolm.launch import n_ranks, own_rank

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nanolm.compose import Line
    from nanolm.config import Config
    from nanolm.runs.directory import RunDirectory
    from nanolm.training.ranks import Ranks

TRAIN_HELP = """\
nanolm train: train a model, or go on with a run.

  nanolm train dataset=tiny_shakespeare tokenizer=char model=gpt size=tiny mask=causal trainer.max_steps=2000
  nanolm train dataset=text dataset.path=my_book.txt          anyone's text: a file, a folder or a glob
  nanolm train -m model=bigram,gpt2,gpt optimizer.lr=1e-3,3e-3      every combination, one after another
  nanolm train resume=outputs/RUN trainer.max_steps=4000      go on with a run
  nanolm train ... resume=auto                                go on if these settings were cut off, else start
  torchrun --nproc-per-node=4 -m nanolm train ...             the same batches, shared by four processes

What can be chosen, as group=option:

{groups}

The defaults. Each can be set as key=value, for example optimizer.lr=1e-3:

{defaults}
  --config-dir FOLDER   your own options beside these     --cfg job   print a line's settings without running it
  hydra.run.dir=FOLDER  where the run goes                --hydra-help   the rest of Hydra's flags
"""

HELP = """\
nanolm: train, study and compare small language models, from bigram to GPT.

  nanolm train        train a model, or go on with a run
                        nanolm train dataset=tiny_shakespeare model=gpt size=tiny trainer.max_steps=2000
  nanolm generate     let a run write
                        nanolm generate outputs/RUN --prompt "To be" --max-new-tokens 200
  nanolm evaluate     the exact loss of a run on a split
                        nanolm evaluate outputs/RUN --split val --json
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
    """`nanolm train`: Hydra composes the line, and launches one job or, with -m, one for every combination."""
    from nanolm.compose import compose_line, hidden_options, import_plugins, quoted, register_schemas
    from nanolm.training.ranks import started

    flags, arguments = _train_flags(arguments)
    if flags.help:
        print(_train_help(flags.config_dir), end="")
        return 0
    asks_only = flags.hydra_help or flags.cfg or flags.info is not None or flags.shell_completion
    if asks_only:
        import_plugins([])
        register_schemas()
        return _hydra(arguments)
    line = compose_line(flags.overrides, flags.config_dir, flags.multirun)
    for name in hidden_options(flags.config_dir) if flags.config_dir and own_rank() == 0 else []:
        print(f"nanolm: {flags.config_dir}/{name} is not read: nanolm has its own {name}", file=sys.stderr)
    if flags.multirun and n_ranks() > 1:
        raise SettingsError(
            f"-m makes many runs, and torchrun started {n_ranks()} processes for one",
            where="the command line",
            mend="torchrun for each run by itself, or -m without torchrun",
        )
    if flags.multirun:
        return _hydra(arguments)
    with started(line.config.trainer) as ranks:
        directory = ranks.from_main(lambda: _run_directory(line))
        return _hydra([*arguments, f"hydra.run.dir={quoted(str(directory))}"], line, ranks)


def _train_flags(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's flags, wherever they stand in the line, and the line with its flags first, as Hydra wants it.

    Raises:
        SettingsError: a flag that does not exist.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise SettingsError(
            message, where="the command line", mend="settings are key=value, for example optimizer.lr=1e-3"
        )

    parser.error = refuse
    flags = parser.parse_intermixed_args(arguments)
    words = list(arguments)
    for override in flags.overrides:
        words.remove(override)
    return flags, [*words, *flags.overrides]


def _train_help(config_dir: str | None) -> str:
    """The options in every group, those of the user's folder included, and all settings with their defaults."""
    import textwrap

    from nanolm.compose import compose_line, config_folder
    from nanolm.config_file import save_yaml

    folders = [config_folder(), *([Path(config_dir)] if config_dir else [])]
    options: dict[str, set[str]] = {}
    for path in (path.relative_to(folder) for folder in folders for path in folder.glob("*/**/*.yaml")):
        options.setdefault(path.parts[0], set()).add(Path(*path.parts[1:]).with_suffix("").as_posix())
    groups = "\n".join(
        textwrap.fill(", ".join(sorted(names)), 100, initial_indent=f"  {group + ':':<12}", subsequent_indent=" " * 14)
        for group, names in sorted(options.items())
    )
    defaults = textwrap.indent(save_yaml(compose_line([]).config), "  ")
    return TRAIN_HELP.format(groups=groups, defaults=defaults)


def _run_directory(line: Line) -> Path:
    """Where the run of this line goes: the run that it resumes, the folder that it names, or a fresh one."""
    from nanolm.config import check
    from nanolm.errors import raise_all
    from nanolm.runs.directory import RunDirectory, fresh

    resume = line.config.resume
    if resume not in ("never", "auto"):
        return RunDirectory(resume).require().path
    raise_all(check(line.config))
    if line.run_directory_is_given:
        return line.run_directory
    cut_off = _cut_off_run(line) if resume == "auto" else None
    return cut_off or fresh(line.run_directory)


def _cut_off_run(line: Line) -> Path | None:
    """The newest run beside the new one's place that has these very settings and did not come to its end."""
    from nanolm.config import identity
    from nanolm.runs.directory import RunDirectory

    wanted, steps = identity(line.config), line.config.trainer.max_steps
    for path in sorted(line.run_directory.parent.glob("*/summary.json"), reverse=True):
        with contextlib.suppress(NanolmError):
            summary = RunDirectory(path.parent).read_summary()
            if summary.get("identity") == wanted and not _is_complete(summary, steps):
                return path.parent
    return None


def _hydra(arguments: list[str], line: Line | None = None, ranks: Ranks | None = None) -> int:
    """Hands the line to Hydra; returns the exit status.

    Of a sweep, a job that fails is reported when it does, and the others run.

    Raises:
        NanolmError: what is wrong with a single run.
    """
    import hydra

    from nanolm.compose import CONFIG_NAME, config_folder
    from nanolm.training.ranks import ALONE

    failed: list[NanolmError] = []

    def job(composed: DictConfig) -> float | None:
        # Kept from Hydra, which has words of its own for a job that fails.
        try:
            return _job(composed, line, ranks or ALONE)
        except NanolmError as error:
            if line is None:
                print(f"nanolm: {_folder_of_job()} failed: {error}", file=sys.stderr)
            failed.append(error)
            return None

    before = sys.argv
    sys.argv = ["nanolm train", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(config_path=str(config_folder()), config_name=CONFIG_NAME, version_base="1.3")(job)()
    finally:
        sys.argv = before
    if failed and line is not None:
        raise failed[0]
    if failed:
        print(f"nanolm: {len(failed)} run{'s' if len(failed) > 1 else ''} failed, named above", file=sys.stderr)
    return max((error.exit_status for error in failed), default=0)


def _folder_of_job() -> Path:
    from hydra.core.hydra_config import HydraConfig

    return _shown(HydraConfig.get().runtime.output_dir)


def _job(composed: DictConfig, line: Line | None, ranks: Ranks) -> float | None:
    """One run, in the folder that Hydra made for it; returns what a sweeper minimises."""
    from hydra.core.hydra_config import HydraConfig

    from nanolm.compose import import_plugins, register_schemas
    from nanolm.config_file import to_config
    from nanolm.runs.directory import RunDirectory

    import_plugins(list(composed.get("plugins") or []))
    register_schemas()
    hydra_config = HydraConfig.get()
    config = to_config(composed)
    run = RunDirectory(_folder_of_job())
    with contextlib.ExitStack() as stack:
        ranks.from_main(lambda: stack.enter_context(run.claim()))
        config, changes, is_complete = ranks.from_main(lambda: _what_to_do(config, run, line))
        if is_complete:
            return _value(run.read_summary())
        from nanolm.runs.console import closing_table
        from nanolm.training.trainer import train as train_model

        choices = {
            group: str(option)
            for group, option in sorted(hydra_config.runtime.choices.items())
            if not group.startswith("hydra/") and option is not None
        }
        choices = run.read_summary().get("choices") or choices
        outcome = train_model(config, run, choices=choices, changes=changes, ranks=ranks, group=_sweep())
        if ranks.is_main:
            closing_table(outcome.summary, run, outcome.sample)
        if outcome.exit_status:
            # Past Hydra, which would start the next job of a sweep.
            sys.exit(outcome.exit_status)
        return _value(outcome.summary)


def _sweep() -> str | None:
    """The name of the sweep that this job is one of: its folder's."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir).resolve().name if hydra.mode == RunMode.MULTIRUN else None


def _what_to_do(config: Config, run: RunDirectory, line: Line | None) -> tuple[Config, list[str], bool]:
    """The settings of the job, those of the run that it goes on with; what changed in them; whether all is done.

    Raises:
        NanolmError: the folder holds a run that is not to go on, or the settings cannot be right.
    """
    from nanolm.compose import continue_run
    from nanolm.config import check
    from nanolm.config_file import load_yaml
    from nanolm.errors import raise_all

    changes: list[str] = []
    if run.exists():
        if config.resume == "never":
            raise RunError(
                "this folder holds a run already",
                where=str(run.path),
                mend="resume=auto goes on with it; another hydra.run.dir= starts anew",
            )
        if line is not None:
            config, changes = continue_run(load_yaml(run.config), line)
        summary = run.read_summary()
        if _is_complete(summary, config.trainer.max_steps):
            print(f"nothing to do: {run.path} is completed at step {summary['step']}", file=sys.stderr)
            return config, changes, True
    raise_all(check(config))
    return config, changes, False


def _is_complete(summary: dict[str, Any], max_steps: int) -> bool:
    """Whether there is nothing to go on with; a model that was counted, and so has entries, never has a next step."""
    has_all_steps = "entries" in summary or summary.get("step", 0) >= max_steps
    return summary.get("status") == "completed" and has_all_steps


def _value(summary: dict[str, Any]) -> float | None:
    return summary.get("best_val_loss")


def _shown(path: str) -> Path:
    """A path as people type it: from the current folder where it lies below it."""
    absolute = Path(path)
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute


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

    loaded = load_run(options.run, options.checkpoint, options.device, options.plugins)
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
    from nanolm.load import load_run
    from nanolm.runs.console import LOSSY

    figures = score(
        load_run(options.run, options.checkpoint, options.device, options.plugins),
        options.split,
        options.stride,
    )
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"{figures['split']} loss {figures['loss']:.4f} nats per token, {figures['bits_per_byte']:.4f} bits per "
            f"byte over {figures['tokens']:,} tokens (step {figures['step']:,}, stride {figures['stride']})"
            + ("" if figures["lossless"] else f"; {LOSSY}")
        )
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
    parser.add_argument("--json", action="store_true", help="one JSON object, with the lr of every step")
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


def _parser(verb: str, description: str, example: str) -> argparse.ArgumentParser:
    """The flags that every verb on a run has."""
    parser = argparse.ArgumentParser(prog=f"nanolm {verb}", description=description, epilog=f"for example: {example}")
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--checkpoint", default="best", help="best, last, or a step (best)")
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
    "checkpoints": checkpoints,
    "data": data,
    "mask": mask,
    "schedule": schedule,
    "count": count,
}
