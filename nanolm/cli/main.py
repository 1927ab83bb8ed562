"""The verbs. Nothing heavy is imported before it is known to be needed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from nanolm import signals, terminal
from nanolm.cli import parsers as command_parsers
from nanolm.errors import NanolmError, RankError, SettingsError, explain_os_error, nearest
from nanolm.torchrun import rank, world_size

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
    """Run a command and exit.

    Exit status: 0 done, 1 failed, 2 a mistake in the command line, 128 + N ended by signal N (training is saved first),
    141 the reader of the output has gone.
    """
    terminal.prepare()
    status: object
    try:
        try:
            # torchrun ends its processes by signals, while each may wait for the others where no handler is called.
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
        # What is left in the buffer of a stream that failed is dropped when Python exits.
        terminal.ignore_write_errors()
    raise SystemExit(status)


def _print_error(error: NanolmError) -> int:
    """Print an error, of what all ranks see that of the first alone; returns its exit status."""
    if rank() == 0 or isinstance(error, RankError):
        terminal.say(f"nanolm: {error}")
    return error.exit_status


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
        raise SettingsError(f"there is no verb {verb!r}", where="the command line", hint=nearest(verb, VERBS))
    return VERBS[verb](rest)


def train(arguments: list[str]) -> int:
    """`nanolm train`, whose words are Hydra's."""
    from nanolm.cli import train as train_verb

    return train_verb.train(arguments)


def generate(arguments: list[str]) -> int:
    """`nanolm generate RUN --prompt TEXT`."""
    options = command_parsers.generate().parse(arguments)

    from nanolm.inference.generate import generate as write
    from nanolm.inference.load import load_run

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
    terminal.write(text)
    return 0


def evaluate(arguments: list[str]) -> int:
    """`nanolm evaluate RUN`."""
    options = command_parsers.evaluate().parse(arguments)

    from nanolm.inference.evaluate import evaluate as score
    from nanolm.inference.load import load_run
    from nanolm.json_text import dump_json
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
    options = command_parsers.report().parse(arguments)

    from nanolm.cli import report as verb
    from nanolm.files import is_stdout

    said = verb.make(
        options.runs,
        options.output,
        png=options.png,
        texts=options.text,
        layers=options.layer,
        n_maps=options.maps,
        plugins=options.plugins,
    )
    (terminal.say if is_stdout(options.output) else terminal.write)("\n".join(said))
    return 0


def checkpoints(arguments: list[str]) -> int:
    """`nanolm checkpoints RUN`."""
    options = command_parsers.checkpoints().parse(arguments)

    from nanolm.cli import checkpoints as checkpoint_verb

    return checkpoint_verb.show(options.run, options.json)


def data(arguments: list[str]) -> int:
    """`nanolm data prepare` and `nanolm data show`, with the settings of a `nanolm train` line."""
    verb, rest = _second_word("data", command_parsers.DATA, arguments)
    if verb is None:
        return 0
    options = command_parsers.PARSERS[f"data {verb}"]().parse(rest)

    from nanolm.cli import data as data_verbs

    if verb == "prepare":
        data_verbs.print_prepared(options.overrides, options.config_dir)
        return 0
    data_verbs.show(options.overrides, options.config_dir, options.tokens, options.json)
    return 0


def mask(arguments: list[str]) -> int:
    """`nanolm mask show`, with the settings of a `nanolm train` line."""
    verb, rest = _second_word("mask", command_parsers.MASK, arguments)
    if verb is None:
        return 0
    options = command_parsers.mask_show().parse(rest)

    from nanolm.cli import mask as mask_verbs

    mask_verbs.show(options.overrides, options.config_dir, options.length, options.png)
    return 0


def schedule(arguments: list[str]) -> int:
    """`nanolm schedule show`, with the settings of a `nanolm train` line."""
    verb, rest = _second_word("schedule", command_parsers.SCHEDULE, arguments)
    if verb is None:
        return 0
    options = command_parsers.schedule_show().parse(rest)

    from nanolm.cli import schedule as schedule_verb

    schedule_verb.show(options.overrides, options.config_dir, options.png, options.json)
    return 0


def count(arguments: list[str]) -> int:
    """`nanolm count`, with the settings of a `nanolm train` line."""
    options = command_parsers.count().parse(arguments)

    from nanolm.cli import count as count_verb

    count_verb.show(options.overrides, options.config_dir, options.vocab_size, options.json)
    return 0


def wandb(arguments: list[str]) -> int:
    """`nanolm wandb push RUN_OR_FOLDER ...`."""
    verb, rest = _second_word("wandb", command_parsers.WANDB, arguments)
    if verb is None:
        return 0
    options = command_parsers.wandb_push().parse(rest)

    from nanolm.cli import wandb as wandb_verb

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
        raise SettingsError(f"there is no verb '{first} {verb}'", where="the command line", hint=nearest(verb, verbs))
    return verb, rest


def compare(arguments: list[str]) -> int:
    """`nanolm compare RUN_OR_FOLDER ...`."""
    options = command_parsers.compare().parse(arguments)

    if options.fit:
        given = {"--metric": options.metric, "--sort": options.sort, "--by": options.by, "--target": options.target}
        words = [flag for flag, value in given.items() if value]
        words += [f"--{options.form}"] if options.form in ("csv", "markdown") else []
        if words:
            raise SettingsError(
                f"--fit prints a law, of which {', '.join(words)} says nothing",
                where=", ".join(words),
                hint="leave it out, or leave out --fit; --fit --json is known",
            )
        from nanolm.cli import scaling as scaling_verb

        scaling_verb.show(options.runs, as_json=options.form == "json")
        return 0
    from nanolm.cli import compare as compare_verb

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
    options = command_parsers.runs().parse(arguments)

    from nanolm.cli import runs as runs_verb

    runs_verb.show(options.folder, options.status, options.where, options.sort, options.json)
    return 0


def diff(arguments: list[str]) -> int:
    """`nanolm diff A B`."""
    options = command_parsers.diff().parse(arguments)

    from nanolm.cli import diff as diff_verb

    diff_verb.show(options.first, options.second, options.all, options.json)
    return 0


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
