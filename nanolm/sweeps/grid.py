"""The sweep of every combination, as Hydra's plugin calls it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm.runs.directory import shown
from nanolm.sweeps.driver import Driver
from nanolm.sweeps.job import SweepJob
from nanolm.sweeps.planning import combinations, plan
from nanolm.sweeps.states import State, read
from nanolm.sweeps.summary import print_summary
from nanolm.terminal import say

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from hydra_plugins.nanolm_sweepers import GridSweeper


def sweep(sweeper: GridSweeper, words: list[str]) -> None:
    """Plans the jobs of a line, runs what is missing, and says how it ended.

    Raises:
        SettingsError: with every mistake in every job; none was run.
        SystemExit: a job failed, or a signal ended the sweep.
    """
    assert isinstance(sweeper.task_function, SweepJob)
    directory = shown(Path(str(sweeper.config.hydra.sweep.dir)))
    wanted = combinations(words, sweeper.params, sweeper.variants)
    jobs = plan(wanted, directory, config_dir=sweeper.task_function.config_dir, searched=searched(sweeper.config))
    done = sum(read(job).state in sweeper.task_function.done for job in jobs)
    same = len(wanted) - len(jobs)
    say(
        f"{len(jobs)} job{'s' * (len(jobs) != 1)} in {directory}"
        + (f", {done} of them done" if done else "")
        + (f" ({same} more would be the same as one of these)" if same else "")
    )
    with Driver(sweeper.config, sweeper.hydra_context, sweeper.task_function, directory, len(jobs)) as driver:
        reports = driver.run(jobs)
    print_summary(jobs, reports, directory, done)
    if driver.signal:
        sys.exit(128 + driver.signal)
    if any(report.state is State.failed for report in reports):
        sys.exit(1)


def searched(config: DictConfig) -> list[str]:
    """The words of a line that say where Hydra looks for options."""
    return [word for word in config.hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
