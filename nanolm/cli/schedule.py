"""`nanolm schedule show`: the learning rate of a `nanolm train` line over its steps, as a curve."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from nanolm import terminal
from nanolm.compose import compose_line
from nanolm.config.checks import check
from nanolm.config.fields import flat
from nanolm.config.scheduler import PlateauConfig, SchedulerConfig, warmup_of
from nanolm.errors import raise_all
from nanolm.files import write_output_file
from nanolm.json_text import dump_json
from nanolm.plotting import encode, importing_matplotlib
from nanolm.runs.occupancy import OVERWRITES, require_outside_runs
from nanolm.training import schedules

WIDEST, HEIGHT = 100, 16

# More than a terminal has dots for and a PNG has pixels. A run of no more steps has all of them computed.
POINTS = 2000

# The fractional part of the golden ratio: its multiples modulo 1 are evenly spread and match no period.
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate of a run.

    Attributes:
        name: of the schedule.
        settings: its settings as plain values, by their keys without the group.
        max_steps: of the run.
        warmup_steps: of the run, as a number.
        steps: the updates whose lr was computed, counted from 0: all, or those of `sampled_steps`.
        lrs: of these updates; of groups of parameters with lr_multipliers it is theirs times this.
        note: what the curve cannot show; '' where there is nothing.
    """

    name: str
    settings: dict[str, object]
    max_steps: int
    warmup_steps: int
    steps: list[int]
    lrs: list[float]
    note: str = ""

    def title(self) -> str:
        """The schedule and what it comes to."""
        lowest, highest = min(self.lrs), max(self.lrs)
        return (
            f"{self.name}: {self.max_steps:,} steps, {self.warmup_steps:,} of them warmup; lr from {self.lrs[0]:.3g} "
            f"to {self.lrs[-1]:.3g}, between {lowest:.3g} and {highest:.3g}"
        )


def look(overrides: Sequence[str], config_dir: str | None = None) -> Schedule:
    """The learning rate that a run of this line would have.

    Args:
        overrides: as `nanolm train` takes them.
        config_dir: the user's own folder of YAML files.

    Raises:
        SettingsError: the line is not as it must be.
    """
    config = compose_line(overrides, config_dir).config
    raise_all(check(config))
    scheduler, max_steps = config.scheduler, config.trainer.max_steps
    steps = sampled_steps(max_steps, scheduler)
    lrs = [config.optimizer.lr * schedules.factor(step, max_steps, scheduler) for step in steps]
    settings = {key.removeprefix("scheduler."): value for key, value in flat(config).items() if "scheduler." in key}
    is_plateau = isinstance(scheduler, PlateauConfig)
    note = "drawn as if the validation loss fell at every evaluation" if is_plateau else ""
    return Schedule(scheduler.name, settings, max_steps, warmup_of(scheduler, max_steps), steps, lrs, note)


def sampled_steps(max_steps: int, scheduler: SchedulerConfig) -> list[int]:
    """The steps to compute a schedule at, in order: all of them in a short run, else a few thousand.

    A sample has the first and the last step, the corners of the schedule (at most POINTS of them), and one step in each
    of POINTS equal parts of the run. Their places within the parts vary, so that a periodic schedule is not sampled at
    the same phase each time.
    """
    if max_steps <= POINTS:
        return list(range(max_steps))
    spread = (int((part + part * GOLDEN % 1) * max_steps / POINTS) for part in range(POINTS))
    corners = itertools.islice(schedules.corners(max_steps, scheduler), POINTS)
    return sorted({step for step in (0, *spread, *corners, max_steps - 1) if 0 <= step < max_steps})


def show(
    overrides: Sequence[str], config_dir: str | None = None, png: Path | None = None, as_json: bool = False
) -> None:
    """Prints the curve of a line's learning rate or, as JSON, the lr of its steps; writes the PNG if one is asked for.

    The JSON has every step of a run of up to POINTS steps, and those of `sampled_steps` of a longer one.

    Raises:
        SettingsError: the line or the place of the PNG is not as it must be, or matplotlib is missing.
    """
    if png is not None:
        require_outside_runs(png, OVERWRITES)
    found = look(overrides, config_dir)
    if png is not None:
        write_output_file("--png", png, to_png(found))
    if as_json:
        print(
            dump_json(
                {
                    "scheduler": found.name,
                    "settings": found.settings,
                    "max_steps": found.max_steps,
                    "warmup_steps": found.warmup_steps,
                    "steps": found.steps,
                    "lr": found.lrs,
                }
            )
        )
        return
    width = min(terminal.width(), WIDEST)
    drawn = curve(found.steps, found.lrs, width)
    terminal.write("\n".join([found.title(), drawn, *([found.note] if found.note else [])]))
    if png is not None:
        terminal.write(f"\nwritten to {png}")


def curve(steps: Sequence[int], lrs: Sequence[float], width: int) -> str:
    """Lines of text: lr over the steps, which are counted from 0."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, HEIGHT)
    plotext.plot(steps, lrs, marker="braille")
    highest = max(lrs)
    plotext.ylim(0, highest)
    heights = [highest * n / 4 for n in range(5)]
    plotext.yticks(heights, [f"{height:.3g}" for height in heights])
    plotext.xticks(sorted({round(steps[-1] * n / 4) for n in range(5)}))
    plotext.xlabel("step (updates of the weights)")
    plotext.ylabel("lr")
    return "\n".join(line.rstrip() for line in plotext.uncolorize(plotext.build()).splitlines())


def to_png(found: Schedule) -> bytes:
    """The curve as a PNG file.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    with importing_matplotlib():
        from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 3.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.steps, found.lrs, color="#1f4e79")
    axes.set_title(found.title(), fontsize=8)
    axes.set_xlabel("step (updates of the weights)")
    axes.set_ylabel("lr")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    return encode(figure)
