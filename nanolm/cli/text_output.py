"""How `nanolm generate` writes texts: as they grow, as JSON, in a prompt loop, side by side, and during training."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from nanolm import terminal
from nanolm.errors import NanolmError
from nanolm.inference.engine import Engine, Generation, Stream
from nanolm.inference.settings import GenerationSettings
from nanolm.json_text import dump_json

# Between two columns of --compare.
_GAP = "  "


def write(engine: Engine, settings: GenerationSettings, arguments: Namespace) -> None:
    """Write the samples of one run: on a terminal as they grow, else at the end."""
    stream = _start(engine, settings, arguments)
    if arguments.json:
        _finish(stream)
        print(dump_json(_record(engine, stream)))
    elif sys.stdout is not None and sys.stdout.isatty() and not arguments.logprobs:
        _write_growing(engine, stream)
    else:
        _finish(stream)
        terminal.write("\n".join(_blocks(engine, stream, arguments)))


def interact(engine: Engine, settings: GenerationSettings, arguments: Namespace) -> None:
    """Continue one prompt after another: Ctrl-C ends the text, Ctrl-D the loop."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives `input` line editing and a history

    is_terminal = sys.stdin.isatty()
    if is_terminal:
        terminal.say("Enter a prompt. Ctrl-C stops the text, Ctrl-D leaves.")
    while True:
        try:
            prompt = input("> " if is_terminal else "")
        except EOFError:
            if is_terminal:
                terminal.write("")
            return
        except KeyboardInterrupt:
            terminal.write("")
            continue
        try:
            stream = engine.stream(prompt, settings, arguments.samples)
            _say_start(stream)
            if arguments.logprobs:
                _finish(stream)
                terminal.write("\n".join(_blocks(engine, stream, arguments)))
            else:
                _write_growing(engine, stream)
        except KeyboardInterrupt:
            terminal.write("")
        except NanolmError as error:
            terminal.say(f"nanolm: {error}")


def compare(engines: Sequence[Engine], settings: GenerationSettings, arguments: Namespace) -> None:
    """Write the samples of two runs side by side."""
    streams = [_start(engine, settings, arguments) for engine in engines]
    for stream in streams:
        _finish(stream)
    if arguments.json:
        runs = [_record(engine, stream) for engine, stream in zip(engines, streams, strict=True)]
        print(dump_json({"runs": runs}))
        return
    pairs = zip(
        *(_blocks(engine, stream, arguments) for engine, stream in zip(engines, streams, strict=True)), strict=True
    )
    tables = [_side_by_side([engine.name for engine in engines], list(pair)) for pair in pairs]
    terminal.write("\n\n".join(tables))


def watch(load: Callable[[], Engine], settings: GenerationSettings, arguments: Namespace) -> None:
    """Write the samples of every new checkpoint of a run, until its training ends."""
    from nanolm.inference.watch import new_checkpoints

    for engine in new_checkpoints(arguments.run, load):
        stream = _start(engine, settings, arguments)
        _finish(stream)
        if arguments.json:
            print(dump_json(_record(engine, stream)), flush=True)
        else:
            heading = f"--- step {engine.step:,} ---"
            terminal.write("\n".join([heading, *_blocks(engine, stream, arguments), ""]))


def _start(engine: Engine, settings: GenerationSettings, arguments: Namespace) -> Stream:
    stream = engine.stream(arguments.prompt or "", settings, arguments.samples)
    _say_start(stream)
    return stream


def _say_start(stream: Stream) -> None:
    if note := stream.prompts[0].note:
        terminal.say(f"nanolm: {note}")


def _finish(stream: Stream) -> None:
    for _ in stream:
        pass


def _write_growing(engine: Engine, stream: Stream) -> None:
    """Write the first sample as it grows, then each next one: what it has so far at once, and the rest as it grows."""
    n_samples = len(stream.prompts)
    texts = [engine.shown_prompt(prompt) for prompt in stream.prompts]
    is_finished = [False] * n_samples
    current = 0
    _write_heading(stream, current)
    terminal.write_part(texts[0])
    for token in stream:
        if token.sample == current:
            terminal.write_part(token.text)
        else:
            texts[token.sample] += token.text
        is_finished[token.sample] = token.finish is not None
        while is_finished[current] and current + 1 < n_samples:
            current += 1
            terminal.write("")
            _write_heading(stream, current)
            terminal.write_part(texts[current])
    terminal.write("")


def _write_heading(stream: Stream, sample: int) -> None:
    if len(stream.prompts) > 1:
        terminal.write(_heading(sample, stream.seeds[sample]))


def _heading(sample: int, seed: int) -> str:
    return f"--- sample {sample + 1}, seed {seed} ---"


def _blocks(engine: Engine, stream: Stream, arguments: Namespace) -> list[str]:
    """Return the text of every sample, with its heading if there are several, and its log-probabilities if asked."""
    blocks = []
    for sample, generation in enumerate(stream.generations()):
        lines = [_heading(sample, generation.seed)] if len(stream.prompts) > 1 else []
        lines.append(engine.shown_prompt(generation.prompt) + generation.text)
        if arguments.logprobs:
            lines += _log_probability_lines(engine, generation)
        blocks.append("\n".join(lines))
    return blocks


def _log_probability_lines(engine: Engine, generation: Generation) -> list[str]:
    """Return a table with one line per token: log-probability, token, and the alternatives."""
    lines = [""]
    for token in generation.tokens:
        alternatives = "".join(f"  {each.text!r} {each.probability:.3f}" for each in token.alternatives)
        lines.append(f"{token.log_probability:9.4f}  {engine.token_text(token.id)!r:<12}{alternatives}".rstrip())
    total = sum(token.log_probability for token in generation.tokens)
    lines.append(f"{total:9.4f}  total of {len(generation.tokens):,} tokens")
    return lines


def _record(engine: Engine, stream: Stream) -> dict[str, Any]:
    """Return the JSON object of a run: that of its sample, or the samples as a list if there are several."""
    prompt = stream.prompts[0]
    record: dict[str, Any] = {
        "run": engine.name,
        "step": engine.step,
        "prompt": prompt.text,
        "starts_from": prompt.start,
        "seconds": round(stream.seconds, 4),
        "first_token_seconds": round(stream.first_seconds, 4),
        "tokens_per_second": round(stream.tokens_per_second, 1),
    }
    samples = [_sample_record(engine, generation) for generation in stream.generations()]
    return record | samples[0] if len(samples) == 1 else record | {"samples": samples}


def _sample_record(engine: Engine, generation: Generation) -> dict[str, Any]:
    tokens = generation.tokens
    record: dict[str, Any] = {
        "seed": generation.seed,
        "text": generation.text,
        "finish": None if generation.finish is None else generation.finish.value,
        "tokens": [token.id for token in tokens],
        "token_texts": [engine.token_text(token.id) for token in tokens],
        "log_probabilities": [round(token.log_probability, 6) for token in tokens],
    }
    if tokens and tokens[0].alternatives:
        record["alternatives"] = [[dataclasses.asdict(each) for each in token.alternatives] for token in tokens]
    return record


def _side_by_side(headings: Sequence[str], texts: Sequence[str]) -> str:
    """Return two texts in columns of equal width, wrapped, without trailing blanks."""
    width = (terminal.width() - len(_GAP)) // 2
    columns = [
        [*_wrap(heading, width), "-" * width, *(part for line in text.split("\n") for part in _wrap(line, width))]
        for heading, text in zip(headings, texts, strict=True)
    ]
    height = max(map(len, columns))
    left, right = (column + [""] * (height - len(column)) for column in columns)
    return "\n".join((_pad(a, width) + _GAP + b).rstrip() for a, b in zip(left, right, strict=True))


def _wrap(line: str, width: int) -> list[str]:
    """Split a line into parts that fit a column, at blanks where there are any."""
    from rich.cells import cell_len

    line = terminal.visible(line).replace("\\x09", "    ")
    parts, part = [], ""
    for character in line:
        if cell_len(part + character) > width:
            head, blank, tail = part.rpartition(" ")
            if blank and head.strip():
                parts.append(head)
                part = tail + character
            else:
                parts.append(part)
                part = character
        else:
            part += character
    return [*parts, part]


def _pad(line: str, width: int) -> str:
    from rich.cells import cell_len

    return line + " " * (width - cell_len(line))
