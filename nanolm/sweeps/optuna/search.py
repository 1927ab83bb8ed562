"""The sweep of a study, as Hydra's plugin calls it: trials are asked for, run as jobs of a sweep, and told."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanolm import shell
from nanolm.compose import compose_jobs, parse
from nanolm.config.checks import check
from nanolm.config.fields import Trait, flat, outside_bounds
from nanolm.config.identity import may_change
from nanolm.config.roles import has_trait
from nanolm.config.run import Config
from nanolm.errors import SettingsError, raise_all
from nanolm.runs.directory import RunDirectory, shown
from nanolm.signals import Stopped
from nanolm.sweeps import launchers
from nanolm.sweeps.driver import PATIENCE, Driver
from nanolm.sweeps.grid import searched
from nanolm.sweeps.job import SweepJob
from nanolm.sweeps.optuna.samplers import FAILED
from nanolm.sweeps.optuna.settings import OptunaConfig, check_length, check_settings, n_trials_of
from nanolm.sweeps.optuna.space import Dimension, Interval, Range, Value, as_overrides, grid, size_of, space_of
from nanolm.sweeps.optuna.study import (
    FOLDER,
    OpenStudy,
    Watch,
    n_impossible,
    name_of,
    open_study,
    others_at_work,
    owner,
    point_of,
    reject,
    settle,
    take,
)
from nanolm.sweeps.planning import Combination, Job, in_words, key_of, plan
from nanolm.sweeps.states import DONE, Report, State, read
from nanolm.sweeps.summary import print_summary
from nanolm.terminal import say

if TYPE_CHECKING:
    from hydra_plugins.nanolm_sweepers import OptunaSweeper

# A space of no more points is checked point by point before the first trial; of a larger one, its edges.
FEW = 256
# A search ends after so many trials in a row whose settings do not fit together.
MAX_IMPOSSIBLE = 100


def sweep(sweeper: OptunaSweeper, words: list[str]) -> None:
    """Runs the trials that a study lacks, and says how it stands.

    Raises:
        SettingsError: with every mistake in the line; nothing was run.
        SystemExit: a trial failed, or a signal ended the sweep.
    """
    assert isinstance(sweeper.task_function, SweepJob)
    settings = sweeper.settings
    space, fixed = read_line(settings, words)
    looks_in = {"config_dir": sweeper.task_function.config_dir, "searched": searched(sweeper.config)}
    raise_all(check_settings(settings, space))
    first = check_points(settings, space, fixed, looks_in)
    directory = shown(Path(str(sweeper.config.hydra.sweep.dir)))
    max_steps = first.trainer.max_steps
    name = name_of(settings, space, decisive(first))
    opened = open_study(directory, name, settings, space, max_steps)
    n_trials = n_trials_of(settings, space)
    search = Search(opened, tuple(fixed), directory, looks_in)
    before = [outcome for outcome in search.outcomes() if outcome.is_over]
    say(
        f"{n_trials} trials in {directory}, sampler {settings.sampler}, pruner {settings.pruner}, study {name}"
        + (f", {len(before)} of them done" if before else "")
    )
    task = dataclasses.replace(
        sweeper.task_function,
        watch=Watch(str(directory.absolute()), name, settings, tuple(space), max_steps),
        done=DONE | {State.pruned} if settings.prunes else DONE,
    )
    n_in_a_row = 0
    at_once = settings.max_batch_size or launchers.jobs_at_once(sweeper.config) or 1
    # A signal may come between two trials: what the journal has by then is what the next line goes on with.
    with (
        owner(directory) as me,
        Driver(sweeper.config, sweeper.hydra_context, task, directory, n_trials) as driver,
        contextlib.suppress(Stopped),
    ):
        driver.run([outcome.job for outcome in before if outcome.report.state in task.done])
        while not driver.is_stopping and n_in_a_row < MAX_IMPOSSIBLE:
            if numbers := take(opened, me, at_once):
                n_possible = search.run(driver, numbers)
                n_in_a_row = 0 if n_possible else n_in_a_row + len(numbers)
            elif others_at_work(opened, me):
                time.sleep(PATIENCE)
            else:
                break
    print_outcome(search.outcomes(), opened, len(before))
    if driver.signal:
        sys.exit(128 + driver.signal)
    if n_in_a_row >= MAX_IMPOSSIBLE:
        say(
            f"nanolm: the search ends: the settings of the last {n_in_a_row} trials do not fit together\n"
            "  hint: give values that fit, such as range(64,257,64) for a width that the heads must divide"
        )
        sys.exit(1)
    if any(trial.user_attrs.get(FAILED) for trial in opened.trials()):
        sys.exit(1)


def read_line(settings: OptunaConfig, words: Sequence[str]) -> tuple[list[Dimension], list[str]]:
    """What a line and the study's params let vary, and the words that are fixed. The line goes before the params.

    Raises:
        SettingsError: with every word that is not right.
    """
    from hydra.core.global_hydra import GlobalHydra

    params = [f"{key}={value}" for key, value in (settings.params or {}).items()]
    parsed = parse([*params, *words])
    for override in parsed:
        # glob(*) asks it for the options of a group.
        override.config_loader = override.config_loader or GlobalHydra.instance().config_loader()
    space, fixed = space_of(parsed)
    return space, [override.input_line for override in fixed]


def check_points(
    settings: OptunaConfig, space: Sequence[Dimension], fixed: Sequence[str], looks_in: dict[str, Any]
) -> Config:
    """Compose points of a space before any is trained; return the settings of one of them.

    Values that do not fit together are left to the search, which skips such trials.

    Raises:
        SettingsError: a value is wrong in itself, or no point is right.
    """
    points = [[*fixed, *as_overrides(point)] for point in probes(space)]
    (job,) = compose_jobs(points[:1], problems_of=lambda config: list(outside_bounds(config)), **looks_in)
    first = job.config
    known = flat(first)
    raise_all(
        [
            SettingsError(
                f"{dimension.key} takes whole numbers, and an interval has others",
                where=dimension.key,
                hint=f"{dimension.key}=int(interval({dimension.low:g},{dimension.high:g}))",
            )
            for dimension in space
            if isinstance(dimension, Interval) and type(known.get(dimension.key.lstrip("+"))) is int
        ]
        + check_length(settings, first.trainer.max_steps)
    )
    jobs = compose_jobs(points, problems_of=lambda config: list(outside_bounds(config)), **looks_in)
    composed = [job.config for job in jobs]
    found = [{problem.found: problem for problem in check(config)} for config in composed]
    # What is wrong everywhere has nothing to do with the values that are searched.
    raise_all([problem for text, problem in found[0].items() if all(text in others for others in found)])
    if len(points) == size_of(space) and all(found):
        raise_all(list({text: problem for problems in found for text, problem in problems.items()}.values()))
    return next((config for config, problems in zip(composed, found, strict=True) if not problems), first)


def probes(space: Sequence[Dimension]) -> list[dict[str, Value]]:
    """Points that show what is wrong with a space before any of it is trained: all of them, or those at its edges."""
    if size_of(space) <= FEW:
        return grid(space)
    edges = {dimension.key: _edges(dimension) for dimension in space}
    base = {key: values[0] for key, values in edges.items()}
    return [base, *({**base, key: value} for key, values in edges.items() for value in values[1:])]


def _edges(dimension: Dimension) -> list[Value]:
    if isinstance(dimension, Interval):
        # Between the ends lie numbers that are not whole, which a setting may refuse.
        return [dimension.low, dimension.high, dimension.at(0.382)]
    return [dimension.low, dimension.high] if isinstance(dimension, Range) else dimension.values()


def decisive(config: Config) -> dict[str, Any]:
    """What the trials of a study share that decides their losses."""
    kept = {
        key: value
        for key, value in flat(config).items()
        if has_trait(key, Trait.horizon) or key.endswith("path") or not may_change(key, config)
    }
    return {key: value for key, value in kept.items() if key != "resume"}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A trial that was begun, and how it stands."""

    number: int
    job: Job
    report: Report
    is_over: bool


@dataclasses.dataclass(frozen=True)
class Search:
    """A study and the line that its trials complete.

    Attributes:
        fixed: the words that all trials share.
        looks_in: where Hydra finds options, as `plan` takes it.
    """

    opened: OpenStudy
    fixed: tuple[str, ...]
    directory: Path
    looks_in: dict[str, Any]

    def run(self, driver: Driver, numbers: Sequence[int]) -> int:
        """Run trials and tell the study how they ended. Two that chose the same are one job.

        Returns:
            The number of trials whose settings fit together; the others are over.
        """
        jobs: dict[int, Job] = {}
        for number in numbers:
            try:
                (jobs[number],) = plan([self._combination(number)], self.directory, **self.looks_in)
                self.opened.mark(number, FOLDER, jobs[number].run.path.name)
            except SettingsError as error:
                reject(self.opened, number, str(error))
                say(f"nanolm: trial {number} is left out: {error}")
        unique = {job.key: job for job in jobs.values()}
        reports = dict(zip(unique, driver.run(list(unique.values())), strict=True))
        for number, job in jobs.items():
            settle(self.opened, number, job.run, reports[job.key])
        return len(jobs)

    def outcomes(self) -> list[Outcome]:
        """How each trial stands that was begun."""
        trials = [trial for trial in self.opened.trials() if FOLDER in trial.user_attrs]
        wanted = [self._combination(trial.number) for trial in trials]
        composed = compose_jobs([combination.words for combination in wanted], **self.looks_in)
        found = []
        for trial, combination, each in zip(trials, wanted, composed, strict=True):
            run = RunDirectory(self.directory / trial.user_attrs[FOLDER])
            job = Job(combination.swept, each.config, each.choices, key_of(each.config), run)
            found.append(Outcome(trial.number, job, read(job), trial.state.is_finished()))
        return found

    def _combination(self, number: int) -> Combination:
        words = as_overrides(point_of(self.opened, number))
        swept = {word.partition("=")[0].lstrip("+"): in_words(word) for word in sorted(words)}
        return Combination((*self.fixed, *words), swept)


def print_outcome(outcomes: Sequence[Outcome], opened: OpenStudy, before: int) -> None:
    """Prints the trials as the jobs of a sweep, the best of them, and what pruning saved.

    Args:
        before: how many trials were over before.
    """
    from rich.text import Text

    from nanolm.tables import Console, cell

    unique = {outcome.job.key: outcome for outcome in outcomes}
    if unique:
        print_summary(
            [outcome.job for outcome in unique.values()],
            [outcome.report for outcome in unique.values()],
            opened.folder,
            before,
        )
    console = Console()
    if n_left_out := n_impossible(opened.trials()):
        trials = "trial" if n_left_out == 1 else "trials"
        console.print(f"left out   {n_left_out} {trials} whose settings do not fit together")
    results = [outcome for outcome in unique.values() if outcome.report.value is not None]
    if results:
        best = min(results, key=lambda outcome: outcome.report.value or 0.0)
        console.print(cell(f"best       trial {best.number}: {best.job.name}"), soft_wrap=True)
    spent, whole = tokens_of(list(unique.values()))
    if spent and opened.settings.prunes:
        console.print(f"tokens     {spent:,}, {spent / whole:.0%} of the {whole:,} that these runs to their end take")
    if pruned := next((outcome for outcome in unique.values() if outcome.report.state is State.pruned), None):
        console.print(
            Text(f"unprune    {shell.resume_command(shown(pruned.job.run.path))}  (any pruned run)"), soft_wrap=True
        )


def tokens_of(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """Tokens that runs were trained on, and those of all of them to their ends; diverged ones end where they did."""
    spent, whole = 0, 0.0
    for outcome in outcomes:
        tokens, step = outcome.report.summary.tokens or 0, outcome.report.summary.steps_done
        rest = (
            1.0 if outcome.report.state is State.diverged or not step else outcome.job.config.trainer.max_steps / step
        )
        spent, whole = spent + tokens, whole + tokens * rest
    return spent, round(whole)
