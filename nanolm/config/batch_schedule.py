"""The shape of every batch of a run: trainer.batch_size_schedule and trainer.context_length_schedule.

A shape is a function of the step, so that a resumed run continues with the batches it would have had. A run has few
shapes, one for each stage: a compiled model is compiled once for each.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

from nanolm.config.fractions import steps_until
from nanolm.config.run import Config
from nanolm.config.size import SizeConfig
from nanolm.config.trainer import TrainerConfig
from nanolm.errors import NanolmError, SettingsError

# Steps of a run that is long enough to have every stage.
LONG_RUN = 10**9

# A checked schedule: (fraction of the steps, value until then), in order.
_Schedule = tuple[tuple[float, int], ...]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Consecutive steps whose batches have the same shape.

    Attributes:
        start: the first step, counted from 0.
        end: the step after the last one.
        batch_size: sequences per step, summed over all processes.
        context_length: tokens per sequence.
        number: of the stage in its run, counted from 0.
        rows_before: sequences of this context length in earlier stages, after which its epochs continue.
    """

    start: int
    end: int
    batch_size: int
    context_length: int
    number: int = 0
    rows_before: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences per step and tokens per sequence."""
        return self.batch_size, self.context_length

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch, padding included."""
        return self.batch_size * self.context_length

    def steps_from(self, step: int) -> int:
        """Return the number of its steps from a step on."""
        return max(0, self.end - max(self.start, step))


def stages(config: Config) -> tuple[Stage, ...]:
    """Return the stages of a checked config, in order: at least one, which together have all steps.

    Those of a run whose budget is not in steps yet have the shares of their steps in a long run.
    """
    trainer = config.trainer
    return _stages(
        LONG_RUN if trainer.max_steps is None else trainer.max_steps,
        trainer.batch_size,
        config.size.context_length,
        tuple(map(tuple, trainer.batch_size_schedule)),
        tuple(map(tuple, trainer.context_length_schedule)),
    )


def stage_at(config: Config, step: int) -> Stage:
    """Return the stage of a step, counted from 0; the last stage for later steps."""
    found = stages(config)
    return next((stage for stage in found if step < stage.end), found[-1])


def largest_stage(config: Config) -> Stage:
    """Return the stage with the most tokens per step, which needs the most memory; the first of several."""
    return max(stages(config), key=lambda stage: stage.tokens_per_step)


def with_stage(config: Config, stage: Stage) -> Config:
    """Return the settings of a run whose batches all have the shape of a stage."""
    trainer = dataclasses.replace(
        config.trainer, batch_size=stage.batch_size, batch_size_schedule=[], context_length_schedule=[]
    )
    size = dataclasses.replace(config.size, context_length=stage.context_length)
    return dataclasses.replace(config, trainer=trainer, size=size)


def total_tokens(config: Config, first: int = 0) -> int:
    """Return the tokens of all batches from a step on, padding included."""
    return sum(stage.steps_from(first) * stage.tokens_per_step for stage in stages(config))


def describe_stages(config: Config) -> str:
    """Describe the shapes of the batches: "batches of 4 x 64 tokens until step 250, then 12 x 64"."""
    *others, last = stages(config)
    shapes = [f"{stage.batch_size:,} x {stage.context_length:,}" for stage in (*others, last)]
    if not others:
        return f"batches of {shapes[0]} tokens"
    ends = [f"{shape} until step {stage.end:,}" for shape, stage in zip(shapes, others, strict=False)]
    return f"batches of {', '.join(ends)}, then {shapes[-1]} tokens"


@functools.lru_cache(maxsize=16)
def _stages(
    max_steps: int, batch_size: int, context_length: int, batch_sizes: _Schedule, context_lengths: _Schedule
) -> tuple[Stage, ...]:
    fractions = {fraction for fraction, _ in (*batch_sizes, *context_lengths)}
    ends = sorted({steps_until(fraction, max_steps) for fraction in fractions} - {0} | {max_steps})
    found: list[Stage] = []
    for number, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        length = _value(context_lengths, context_length, start, max_steps)
        earlier = ((stage.end - stage.start) * stage.batch_size for stage in found if stage.context_length == length)
        found.append(Stage(start, end, _value(batch_sizes, batch_size, start, max_steps), length, number, sum(earlier)))
    return tuple(found)


def _value(schedule: _Schedule, final: int, step: int, max_steps: int) -> int:
    """Return the value of a schedule at a step."""
    return next((value for fraction, value in schedule if step < steps_until(fraction, max_steps)), final)


def check_schedules(trainer: TrainerConfig, size: SizeConfig) -> Iterator[NanolmError]:
    """Find batch schedules that are not lists of [fraction, value], or whose values cannot be used."""
    batch_sizes = ("trainer.batch_size_schedule", trainer.batch_size_schedule, "trainer.batch_size")
    contexts = ("trainer.context_length_schedule", trainer.context_length_schedule, "size.context_length")
    for key, schedule, final in (batch_sizes, contexts):
        yield from _check_pairs(key, schedule, final)
    longest = size.context_length
    for number, pair in enumerate(trainer.context_length_schedule):
        if _is_pair(pair) and _is_whole(pair[1]) and pair[1] > longest:
            yield SettingsError(
                f"trainer.context_length_schedule[{number}] is {pair[1]} tokens, more than size.context_length "
                f"({longest})",
                where="trainer.context_length_schedule, size.context_length",
                hint=f"use at most {longest}, or a longer size.context_length: evaluation always uses all of it",
            )


def _check_pairs(key: str, schedule: list[Any], final: str) -> Iterator[NanolmError]:
    """Find mistakes in each [fraction, value] of a schedule.

    Args:
        key: of the schedule.
        final: the setting whose value holds after the last stage.
    """
    before = 0.0
    form = f"each stage is [fraction, value], as in {key}=[[0.25,8],[0.5,16]]; after the last one, {final} is used"
    for number, pair in enumerate(schedule):
        where = f"{key}[{number}]"
        if not _is_pair(pair):
            yield SettingsError(f"{where} is {pair!r}, and must be a pair of numbers", where=key, hint=form)
            continue
        fraction, value = pair
        if not 0 < fraction < 1:
            yield SettingsError(
                f"{where} ends at the fraction {fraction:g} of the steps, which must be more than 0 and less than 1",
                where=key,
                hint=form,
            )
        elif fraction <= before:
            yield SettingsError(
                f"{where} ends at the fraction {fraction:g} of the steps, and the stage before it at {before:g}",
                where=key,
                hint="list the stages in their order",
            )
        else:
            before = fraction
        if not _is_whole(value) or value < 1:
            yield SettingsError(
                f"{where} has the value {value}, which must be a whole number from 1 on", where=key, hint=form
            )


def _is_pair(pair: Any) -> bool:
    is_list = isinstance(pair, list | tuple) and len(pair) == 2
    return is_list and all(isinstance(number, int | float) and not isinstance(number, bool) for number in pair)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
