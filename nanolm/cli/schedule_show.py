"""`nanolm schedule show`: plot the schedules of the learning rate, the batch size and the context length."""

from __future__ import annotations

import dataclasses
import itertools
import math
from argparse import Namespace
from collections.abc import Sequence

from nanolm import terminal
from nanolm.cli.arguments import add_json, add_overrides, add_png, compose
from nanolm.config.batch_schedule import describe_stages, stage_at, stages, total_tokens
from nanolm.config.budget import Budget, budget_of
from nanolm.config.checks.scheduler import check_phases
from nanolm.config.fields import flat
from nanolm.config.run import Config
from nanolm.config.scheduler import PlateauConfig, SchedulerConfig, warmup_of
from nanolm.errors import raise_all
from nanolm.json_text import dump_json
from nanolm.model.budget import read_steps
from nanolm.option_types import Parser
from nanolm.output_files import write_output_file
from nanolm.plotting import Curve, encode, importing_matplotlib, terminal_plot
from nanolm.training import schedules

MAX_WIDTH = 100

# More than a terminal has dots and a PNG has pixels. For runs of up to this many steps, all are computed.
POINTS = 2000

# The fractional part of the golden ratio: its multiples modulo 1 are evenly spread and match no period.
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate and the batches of a run.

    Attributes:
        scheduler: name of the schedule.
        settings: its settings as plain values, by key without the group.
        budget: the setting that decides the number of steps, with its value.
        max_steps: number of optimizer steps.
        warmup_steps: number of warmup steps.
        steps: the computed steps, counted from 0: all, or those of `sample_steps`.
        lr: learning rates at these steps, before lr_multipliers.
        batch_size: sequences of the batches at these steps.
        context_length: tokens of their sequences.
        tokens: of all batches of the run.
        batches: describes the stages of the batches.
    """

    scheduler: str
    settings: dict[str, object]
    budget: dict[str, float]
    max_steps: int
    warmup_steps: int
    steps: list[int]
    lr: list[float]
    batch_size: list[int]
    context_length: list[int]
    tokens: int
    batches: str

    def scheduled_batches(self) -> dict[str, list[int]]:
        """Return what changes of the shape of the batches, by name."""
        shape = {"batch size": self.batch_size, "context length": self.context_length}
        return {name: values for name, values in shape.items() if len(set(values)) > 1}

    def title(self) -> str:
        """Summarise the schedule in one line."""
        (budget,) = itertools.starmap(Budget, self.budget.items())
        source = "" if budget.in_steps else f" ({budget})"
        return (
            f"{self.scheduler}: {self.max_steps:,} steps{source}, {self.warmup_steps:,} of them warmup; lr from "
            f"{self.lr[0]:.3g} to {self.lr[-1]:.3g}, between {min(self.lr):.3g} and {max(self.lr):.3g}"
        )


def add_arguments(parser: Parser) -> None:
    parser.describe(f"--json prints the lr and the batch of every step, or of a sample of runs over {POINTS:,} steps.")
    add_overrides(parser)
    add_png(parser)
    add_json(parser)


def run(arguments: Namespace) -> None:
    """Print the curve, or the lr of each step as JSON; write the PNG if one is requested."""
    config = read_steps(compose(arguments).config)
    raise_all(list(check_phases(config)))
    schedule = make_schedule(config)
    if arguments.png is not None:
        write_output_file("--png", arguments.png, to_png(schedule))
    if arguments.json:
        print(dump_json(dataclasses.asdict(schedule)))
        return
    ticks = [max(schedule.lr) * n / 4 for n in range(5)]
    width = min(terminal.width(), MAX_WIDTH)
    terminal.write(schedule.title())
    terminal.write(terminal_plot([Curve(schedule.steps, schedule.lr)], width, "step", "lr", y_ticks=ticks))
    for name, values in schedule.scheduled_batches().items():
        ticks = [max(values) * n / 4 for n in range(5)]
        terminal.write(terminal_plot([Curve(schedule.steps, values)], width, "step", name, y_ticks=ticks))
    if schedule.scheduled_batches():
        terminal.write(f"{schedule.batches}; {schedule.tokens:,} tokens in all")
    if isinstance(config.scheduler, PlateauConfig):
        terminal.write("drawn as if the validation loss improved at every evaluation")
    if arguments.png is not None:
        terminal.write(f"\nwritten to {arguments.png}")


def make_schedule(config: Config) -> Schedule:
    """Compute the learning rates and the batches of a run with these checked settings."""
    scheduler, max_steps = config.scheduler, config.trainer.steps
    starts = [stage.start for stage in stages(config)]
    steps = sample_steps(max_steps, scheduler, [step for start in starts for step in (start - 1, start)])
    shapes = [stage_at(config, step).shape for step in steps]
    lrs = [config.optimizer.lr * schedules.factor(step, max_steps, scheduler) for step in steps]
    return Schedule(
        scheduler=scheduler.name,
        settings=flat(scheduler),
        budget=budget_of(config.trainer).as_dict(),
        max_steps=max_steps,
        warmup_steps=warmup_of(scheduler, max_steps),
        steps=steps,
        lr=lrs,
        batch_size=[batch_size for batch_size, _ in shapes],
        context_length=[context_length for _, context_length in shapes],
        tokens=total_tokens(config),
        batches=describe_stages(config),
    )


def sample_steps(max_steps: int, scheduler: SchedulerConfig, more: Sequence[int] = ()) -> list[int]:
    """Choose the steps at which to compute a schedule, in order: all in a short run, else a few thousand.

    The sample contains the first and the last step, the corners of the schedule (at most POINTS of them), and one step
    in each of POINTS equal parts of the run. The place within the parts varies, so that a periodic schedule is not
    sampled at the same phase each time.

    Args:
        more: further steps to include.
    """
    if max_steps <= POINTS:
        return list(range(max_steps))
    spread = (int((part + part * GOLDEN % 1) * max_steps / POINTS) for part in range(POINTS))
    corners = itertools.islice(schedules.corners(max_steps, scheduler), POINTS)
    return sorted({step for step in (0, *spread, *corners, *more, max_steps - 1) if 0 <= step < max_steps})


def to_png(schedule: Schedule) -> bytes:
    """Plot lr over steps as a PNG file, and below it what changes of the batches.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    with importing_matplotlib():
        from matplotlib.figure import Figure
    curves: dict[str, Sequence[float]] = {"lr": schedule.lr, **schedule.scheduled_batches()}
    figure = Figure(figsize=(7, 3.5 + 1.5 * (len(curves) - 1)), dpi=150, layout="constrained")
    heights = [3.0, *[1.3] * (len(curves) - 1)]
    panels = figure.subplots(len(curves), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, values) in zip(panels, curves.items(), strict=True):
        axes.plot(schedule.steps, values, color="#1f4e79")
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(schedule.title(), fontsize=8)
    panels[-1].set_xlabel("step")
    return encode(figure)
