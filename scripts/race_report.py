"""The results of scripts/race.py: a line for each run, a table in Markdown, JSON and a picture."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# The name of nanoGPT's own train.py among the runs.
NANOGPT = "nanoGPT"
COLOURS = {
    NANOGPT: "#6b7680",
    "nanogpt_cpu": "#b07400",
    "shakespeare_cpu": "#0072b2",
    "shakespeare_ngram": "#009e73",
    "shakespeare_sprint": "#d55e00",
    "shakespeare_ngram_sprint": "#b4538a",
}


@dataclasses.dataclass(frozen=True)
class Point:
    """An evaluation.

    Attributes:
        step: optimizer steps done.
        tokens: training tokens so far.
        seconds: since the start of the process.
        loss: exact validation loss in nats per token.
        estimate: nanoGPT's estimate of it over random batches; None if the run makes none.
    """

    step: int
    tokens: int
    seconds: float
    loss: float
    estimate: float | None


@dataclasses.dataclass(frozen=True)
class Result:
    """A run, with its evaluations in order."""

    run: str
    seed: int
    points: tuple[Point, ...]

    def reached(self, target: float) -> Point | None:
        """Return the first evaluation at or below a loss."""
        return next((point for point in self.points if point.loss <= target), None)

    def describe(self, target: float) -> str:
        """Describe the run in a line."""
        reached, last = self.reached(target), self.points[-1]
        goal = (
            f"{target} not reached"
            if reached is None
            else f"{target} after {reached.tokens:,} tokens and {reached.seconds:.1f} s"
        )
        estimate = "" if last.estimate is None else f" (estimate {last.estimate:.4f})"
        end = f"val loss {last.loss:.4f}{estimate} at {last.tokens:,} tokens after {last.seconds:.1f} s"
        return f"seed {self.seed}  {self.run}: {goal}; {end}"


def by_run(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group the results by run, in the order of COLOURS."""
    grouped = {name: [result for result in results if result.run == name] for name in COLOURS}
    return {name: group for name, group in grouped.items() if group}


def table(results: Sequence[Result], target: float) -> str:
    """Return a table in Markdown: the mean and the standard deviation over the seeds of each run."""
    columns = ["run", "seeds", f"tokens to {target}", f"seconds to {target}", "nanoGPT's time", "last val loss"]
    columns += ["its estimate", "at tokens"]
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for name, group in by_run(results).items():
        reached = [result.reached(target) for result in group]
        complete = [point for point in reached if point is not None]
        lasts = [result.points[-1] for result in group]
        missing = f"{len(complete)} of {len(group)} reach it; " if 0 < len(complete) < len(group) else ""
        cells = [
            f"`{name}`" if name != NANOGPT else name,
            str(len(group)),
            missing + _spread([point.tokens for point in complete], "{:,.0f}") if complete else "not reached",
            missing + _spread([point.seconds for point in complete], "{:.1f}") if complete else "not reached",
            _speedup(results, group, target),
            _spread([point.loss for point in lasts], "{:.4f}"),
            _spread([point.estimate for point in lasts if point.estimate is not None], "{:.4f}"),
            _spread([point.tokens for point in lasts], "{:,.0f}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float], form: str) -> str:
    """Return the mean, with the standard deviation if the values differ; an empty string for no values."""
    if not values:
        return ""
    mean = form.format(statistics.mean(values))
    return mean if len(set(values)) == 1 else f"{mean} ± {form.format(statistics.stdev(values))}"


def _speedup(results: Sequence[Result], group: Sequence[Result], target: float) -> str:
    """Return the mean of nanoGPT's seconds to the target divided by those of a run, over the pairs of the same seed.

    Where nanoGPT does not reach the target, all of its seconds count, and the quotient is a lower bound.
    """
    theirs = {result.seed: result for result in results if result.run == NANOGPT}
    quotients, is_bound = [], False
    for result in group:
        own, other = result.reached(target), theirs.get(result.seed)
        if own is not None and other is not None:
            goal = other.reached(target)
            is_bound |= goal is None
            quotients.append((goal or other.points[-1]).seconds / own.seconds)
    if not quotients or group[0].run == NANOGPT:
        return ""
    return ("at least " if is_bound else "") + _spread(quotients, "{:.1f}") + " times"


def write(output: Path, facts: dict[str, Any], results: Sequence[Result], target: float, budget: int) -> None:
    """Write the table as Markdown, all evaluations as JSON, and the picture.

    Args:
        output: path without suffix.
        facts: of the machine and the versions.
        budget: in tokens.
    """
    picture = picture_path(output)
    picture.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        "# nanolm against nanoGPT",
        "",
        "Written by `python scripts/race.py`; do not edit. All runs train the CPU configuration of nanoGPT's README,",
        f"0.8M parameters on tiny Shakespeare, with a budget of {budget:,} tokens. `nanoGPT` is its own train.py, the",
        "others are `nanolm train experiment=NAME`. Losses are exact, in nats per character, over the last tenth of",
        "the text. The clock starts with the process. For nanoGPT, it leaves out the exact losses, which it does not",
        "compute itself. The n-grams that `shakespeare_ngram` and `shakespeare_ngram_sprint` count are not part of the",
        "0.8M; the tokens of the text that they count them on are part of their tokens.",
        "",
        table(results, target),
        "",
        f"The column of nanoGPT's time is its seconds to {target} divided by those of the run with the same seed. If",
        "nanoGPT does not reach that loss, all of its seconds count.",
        "",
        f"![Validation loss by tokens and by seconds]({picture.relative_to(output.parent)})",
        "",
        "## Runs",
        "",
        *(f"- {result.describe(target)}" for result in results),
        "",
        "## Machine",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
    ]
    output.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = {
        "about": facts,
        "target": target,
        "budget_tokens": budget,
        "results": [dataclasses.asdict(result) for result in results],
    }
    output.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    picture.write_bytes(draw(results, target))


def read(output: Path) -> tuple[dict[str, Any], list[Result]]:
    """Read the facts and the results that `write` has written.

    Raises:
        OSError, ValueError, KeyError: there are none.
    """
    found = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    results = [
        Result(result["run"], result["seed"], tuple(Point(**point) for point in result["points"]))
        for result in found["results"]
    ]
    return found["about"], results


def picture_path(output: Path) -> Path:
    """Return the path of the picture."""
    return output.parent / "images" / f"{output.name}.png"


def require_matplotlib() -> None:
    """Check that the picture can be drawn.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    from nanolm.plotting import importing_matplotlib

    with importing_matplotlib():
        import matplotlib.figure  # noqa: F401


def draw(results: Sequence[Result], target: float) -> bytes:
    """Draw the validation loss by tokens and by seconds, and return the content of a PNG file."""
    from matplotlib.figure import Figure

    from nanolm.plotting import encode

    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    scales: tuple[tuple[str, Callable[[Point], float]], ...] = (
        ("training tokens (millions)", lambda point: point.tokens / 1e6),
        ("wall clock (seconds)", lambda point: point.seconds),
    )
    for axis, (label, x_of) in zip(axes, scales, strict=True):
        for name, group in by_run(results).items():
            for number, result in enumerate(group):
                axis.plot(
                    [x_of(point) for point in result.points],
                    [point.loss for point in result.points],
                    color=COLOURS[name],
                    marker="o",
                    markersize=3,
                    linewidth=1.2,
                    label=name if number == 0 else None,
                )
        axis.axhline(target, color="black", linewidth=0.8, linestyle=":", label=f"target {target}")
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("exact validation loss (nats per character)")
    axes[1].legend(frameon=False)
    return encode(figure)
