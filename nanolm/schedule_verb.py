"""`nanolm schedule show`: the learning rate of a `nanolm train` line over its steps, as a curve."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from nanolm.compose import compose_line
from nanolm.config import PlateauConfig, check, flat, warmup_of
from nanolm.errors import raise_all
from nanolm.files import write_asked_for
from nanolm.json_text import dump_json
from nanolm.png import encode, importing_matplotlib
from nanolm.training import schedules

WIDEST, HEIGHT = 100, 16

# As many as a terminal has dots for, some times over.
POINTS = 2000


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate of a run.

    Attributes:
        name: of the schedule.
        settings: its settings as plain values, by their keys without the group.
        warmup_steps: of the run, as a number.
        lrs: of each update; of groups of parameters with lr_multipliers it is theirs times this.
        note: what the curve cannot show; '' where there is nothing.
    """

    name: str
    settings: dict[str, object]
    warmup_steps: int
    lrs: list[float]
    note: str = ""

    def title(self) -> str:
        """The schedule and what it comes to."""
        lowest, highest = min(self.lrs), max(self.lrs)
        return (
            f"{self.name}: {len(self.lrs):,} steps, {self.warmup_steps:,} of them warmup; lr from {self.lrs[0]:.3g} "
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
    lrs = [config.optimizer.lr * schedules.factor(step, max_steps, scheduler) for step in range(max_steps)]
    settings = {key.removeprefix("scheduler."): value for key, value in flat(config).items() if "scheduler." in key}
    is_plateau = isinstance(scheduler, PlateauConfig)
    note = "drawn as if the validation loss fell at every evaluation" if is_plateau else ""
    return Schedule(scheduler.name, settings, warmup_of(scheduler, max_steps), lrs, note)


def show(
    overrides: Sequence[str], config_dir: str | None = None, png: Path | None = None, as_json: bool = False
) -> None:
    """Prints the curve of a line's learning rate or, as JSON, the lr of every step; writes the PNG if one is asked for.

    Raises:
        SettingsError: the line or the place of the PNG is not as it must be, or matplotlib is missing.
    """
    found = look(overrides, config_dir)
    if png is not None:
        write_asked_for("--png", png, to_png(found))
    if as_json:
        print(
            dump_json(
                {
                    "scheduler": found.name,
                    "settings": found.settings,
                    "max_steps": len(found.lrs),
                    "warmup_steps": found.warmup_steps,
                    "lr": found.lrs,
                }
            )
        )
        return
    width = min(shutil.get_terminal_size().columns, WIDEST)
    print("\n".join([found.title(), curve(found.lrs, width), *([found.note] if found.note else [])]))
    if png is not None:
        print(f"\nwritten to {png}")


def curve(lrs: Sequence[float], width: int) -> str:
    """Lines of text: lr over the steps, which are counted from 0."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, HEIGHT)
    last = len(lrs) - 1
    steps = sorted({round(last * n / POINTS) for n in range(POINTS + 1)})
    plotext.plot(steps, [lrs[step] for step in steps], marker="braille")
    highest = max(lrs)
    plotext.ylim(0, highest)
    heights = [highest * n / 4 for n in range(5)]
    plotext.yticks(heights, [f"{height:.3g}" for height in heights])
    plotext.xticks(sorted({round(last * n / 4) for n in range(5)}))
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
    axes.plot(range(len(found.lrs)), found.lrs, color="#1f4e79")
    axes.set_title(found.title(), fontsize=8)
    axes.set_xlabel("step (updates of the weights)")
    axes.set_ylabel("lr")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    return encode(figure)
