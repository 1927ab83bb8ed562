"""The grid sweeper: run every combination of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nanolm.errors import raise_all
from nanolm.sweeps.combinations import combinations
from nanolm.sweeps.driver import Driver, SweepRequest, SweepResult, check_request
from nanolm.sweeps.order import Order, check_order, in_order
from nanolm.sweeps.planning import plan
from nanolm.sweeps.seed_summaries import log_seed_summaries
from nanolm.sweeps.states import DONE, State, read_job
from nanolm.sweeps.summary import print_summary
from nanolm.terminal import say


def sweep(
    request: SweepRequest, params: Mapping[str, str] | None, variants: Mapping[str, Sequence[str]] | None
) -> SweepResult:
    """Plan the jobs, run those that are not done, and print a summary.

    Raises:
        SettingsError: with every mistake in every job; none was run.
    """
    raise_all([*check_request(request), *check_order(request.order)])
    wanted = combinations(request.overrides, params, variants)
    jobs = in_order(plan(wanted, request.directory, *request.config_sources), Order(request.order))
    n_done = sum(read_job(job).state in DONE for job in jobs)
    n_same = len(wanted) - len(jobs)
    say(
        f"{len(jobs)} job{'s' * (len(jobs) != 1)} in {request.directory}"
        + (f", {n_done} of them done" if n_done else "")
        + (f" ({n_same} more combinations are duplicates)" if n_same else "")
    )
    with Driver(request, len(jobs)) as driver:
        reports = driver.run(jobs)
    print_summary(jobs, reports, request.directory, n_done, request.max_hours if driver.is_over_time else None)
    if sum(report.state in DONE for report in reports) > n_done and not driver.stop.signal:
        log_seed_summaries(jobs)
    errors = tuple(report.error for report in reports if report.state is State.failed)
    return SweepResult(tuple(job.run.path for job in jobs), errors, driver.stop.signal)
