"""The optuna sweeper: draw trials, run them as jobs of a sweep, and tell the study their results."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Sequence

from nanolm.compose import compose_jobs, parse
from nanolm.errors import SettingsError, raise_all
from nanolm.runs.directory import RunDirectory
from nanolm.signals import Stopped
from nanolm.sweeps.combinations import Combination, display_value
from nanolm.sweeps.driver import POLL_INTERVAL, Driver, SweepRequest, SweepResult
from nanolm.sweeps.launchers import registry
from nanolm.sweeps.optuna.checks import check_points, shared_settings
from nanolm.sweeps.optuna.journal import JOURNAL
from nanolm.sweeps.optuna.journal_entries import FOLDER
from nanolm.sweeps.optuna.samplers import FAILED
from nanolm.sweeps.optuna.settings import OptunaConfig, check_settings, n_trials_of
from nanolm.sweeps.optuna.space import as_overrides, space_of
from nanolm.sweeps.optuna.study import (
    OpenStudy,
    open_study,
    point_of,
    register_sweeper,
    reject_trial,
    shared_trials,
    study_name,
    take_trials,
)
from nanolm.sweeps.optuna.summary import Outcome, print_study
from nanolm.sweeps.optuna.trials import find_pruner, finish_trial
from nanolm.sweeps.planning import Job, job_key, plan
from nanolm.sweeps.states import DONE, State, read_job
from nanolm.terminal import say

# A search ends after this many consecutive trials whose settings do not fit together.
MAX_IMPOSSIBLE = 100


def sweep(request: SweepRequest, settings: OptunaConfig) -> SweepResult:
    """Run the missing trials of a study, and print a summary.

    Raises:
        SettingsError: with every mistake in the command; nothing was run.
    """
    # The command line takes precedence over the params of a file.
    params = [f"{key}={value}" for key, value in (settings.params or {}).items()]
    space, fixed = space_of(parse([*params, *request.overrides]))
    raise_all([*registry.check(request.config), *check_settings(settings, space)])
    config = check_points(settings, space, fixed, request.config_sources)
    directory = request.directory
    name = study_name(settings, space, shared_settings(config))
    description = (name, settings, tuple(space), config.trainer.max_steps or 0)
    opened = open_study(directory, *description)
    n_trials = n_trials_of(settings, space)
    search = Search(opened, tuple(fixed), request.config_sources)
    over = [outcome for outcome in search.outcomes() if outcome.is_over]
    say(
        f"{n_trials} trials in {directory}, sampler {settings.sampler}, pruner {settings.pruner}, study {name}"
        + (f", {len(over)} of them done" if over else "")
    )
    job = dataclasses.replace(
        request.job,
        make_pruner=functools.partial(find_pruner, functools.partial(open_study, directory.absolute(), *description)),
        final_states=DONE | {State.pruned} if settings.prunes else DONE,
    )
    # If a signal arrives between two trials, the next command continues with what the journal has by then.
    with (
        register_sweeper(directory) as sweeper,
        Driver(dataclasses.replace(request, job=job), n_trials) as driver,
        contextlib.suppress(Stopped),
    ):
        driver.add([outcome.job for outcome in over if outcome.report.state in job.final_states])
        search.run(driver, sweeper)
    outcomes = search.outcomes()
    print_study(outcomes, opened, len(over))
    if driver.is_over_time:
        say(f"sweep.max_hours={request.max_hours:g} is over: {len(outcomes)} of {n_trials} trials were begun")
    errors = [outcome.report.error for outcome in outcomes if outcome.report.state is State.failed]
    failed = [f"trial {trial.number} failed" for trial in opened.trials() if trial.user_attrs.get(FAILED)]
    errors += failed[len(errors) :]
    if search.is_stuck and not driver.stop.signal:
        problem = (
            f"the search ends: the settings of the last {search.n_impossible} trials do not fit together\n"
            "  hint: give values that fit, such as range(64,257,64) for a width that n_heads must divide"
        )
        say(f"nanolm: {problem}")
        errors.append(problem)
    return SweepResult(tuple(outcome.job.run.path for outcome in outcomes), tuple(errors), driver.stop.signal)


@dataclasses.dataclass
class Search:
    """A study whose trials are run here.

    Attributes:
        fixed: the overrides that all trials share.
        config_sources: where options are found, as in `compose_jobs`.
        n_impossible: the number of trials since the last one whose settings fit together.
    """

    opened: OpenStudy
    fixed: tuple[str, ...]
    config_sources: tuple[str | None, Sequence[str]]
    n_impossible: int = 0
    # The numbers of the trials that wait for each job, by its key. Two trials with the same values are one job.
    _trials: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    @property
    def is_stuck(self) -> bool:
        """Whether the search ends because the settings of its trials do not fit together."""
        return self.n_impossible >= MAX_IMPOSSIBLE

    def run(self, driver: Driver, sweeper: str) -> None:
        """Run the missing trials; when one ends, the next one is drawn, from the results so far."""
        while True:
            is_ending = driver.is_stopping or self.is_stuck
            n_free = 0 if is_ending else driver.n_slots - driver.n_started
            numbers = take_trials(self.opened, sweeper, n_free) if n_free > 0 else []
            if numbers:
                self._start(driver, numbers)
            if driver.has_open_jobs:
                self._finish(driver, driver.wait())
            elif is_ending or not (numbers or self._wait_for_others(driver, sweeper)):
                return

    def _wait_for_others(self, driver: Driver, sweeper: str) -> bool:
        """Wait a moment for trials that other commands run; return whether there are any."""
        shared = shared_trials(self.opened, sweeper)
        for number, lock, run in shared:
            written = (self.opened.folder / JOURNAL, lock, run.metrics, run.log, run.summary)
            driver.waits.check(f"trial {number}", lock, written)
        if shared:
            time.sleep(POLL_INTERVAL)
        return bool(shared)

    def _start(self, driver: Driver, numbers: Sequence[int]) -> None:
        """Start the jobs of trials whose settings fit together; end the others."""
        jobs: dict[str, Job] = {}
        for number in numbers:
            try:
                (job,) = plan([self._combination(number)], self.opened.folder, *self.config_sources)
            except SettingsError as error:
                self.n_impossible += 1
                reject_trial(self.opened, number, str(error))
                say(f"nanolm: trial {number} is skipped: {error}")
                continue
            self.n_impossible = 0
            self.opened.set_attribute(number, FOLDER, job.run.path.name)
            if job.key not in self._trials:
                jobs[job.key] = job
            self._trials.setdefault(job.key, []).append(number)
        driver.add(list(jobs.values()))
        self._finish(driver, driver.start(list(jobs.values())))

    def _finish(self, driver: Driver, jobs: Sequence[Job]) -> None:
        """Tell the study the results of jobs."""
        for job in jobs:
            for number in self._trials.pop(job.key):
                finish_trial(self.opened, number, job.run, driver.report(job))

    def outcomes(self) -> list[Outcome]:
        """Return the state of each trial that was started."""
        trials = [trial for trial in self.opened.trials() if FOLDER in trial.user_attrs]
        combinations = [self._combination(trial.number) for trial in trials]
        composed = compose_jobs([combination.overrides for combination in combinations], *self.config_sources)
        found = []
        for trial, combination, each in zip(trials, combinations, composed, strict=True):
            run = RunDirectory(self.opened.folder / trial.user_attrs[FOLDER])
            job = Job(combination.swept, each.config, each.choices, job_key(each.config), run)
            found.append(Outcome(trial.number, job, read_job(job), trial.state.is_finished()))
        return found

    def _combination(self, number: int) -> Combination:
        overrides = as_overrides(point_of(self.opened, number))
        swept = {text.partition("=")[0].lstrip("+"): display_value(text) for text in sorted(overrides)}
        return Combination((*self.fixed, *overrides), swept)
