"""An Optuna study in the folder of its sweep, and the assignment of its trials to sweepers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from nanolm.config.fields import Role, leaves, setting_of
from nanolm.errors import NanolmError, explain_os_error
from nanolm.files import write_text
from nanolm.json_text import dump_json
from nanolm.lock_holders import Holder
from nanolm.locks import Lock, is_held
from nanolm.runs.directory import RunDirectory, make_folders, remove_empty
from nanolm.runs.occupancy import require_no_run
from nanolm.soft_locks import soft_path
from nanolm.sweeps.optuna.journal import damaged_journal, open_journal
from nanolm.sweeps.optuna.journal_entries import FOLDER, IMPOSSIBLE, OWNER
from nanolm.sweeps.optuna.pruners import PRUNERS
from nanolm.sweeps.optuna.samplers import FAILED, SAMPLERS, distribution_of
from nanolm.sweeps.optuna.settings import OptunaConfig, n_trials_of
from nanolm.sweeps.optuna.space import Choice, Dimension, Interval, Value, size_of


@dataclasses.dataclass(frozen=True)
class OpenStudy:
    """A study in the folder of its sweep.

    Attributes:
        max_steps: steps of its completed trials; 0 if each has its own number, which a pruner cannot compare.
    """

    folder: Path
    space: Sequence[Dimension]
    settings: OptunaConfig
    max_steps: int
    storage: JournalStorage
    study: optuna.Study

    def trials(self) -> list[FrozenTrial]:
        """Return all trials by number."""
        return self.study.get_trials(deepcopy=False)

    def trial_id(self, number: int) -> int:
        """Return the storage's id of a trial."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def set_attribute(self, number: int, key: str, value: Any) -> None:
        """Set a user attribute of a trial."""
        self.storage.set_trial_user_attr(self.trial_id(number), key, value)


def study_name(settings: OptunaConfig, space: Sequence[Dimension], fixed: Mapping[str, Any]) -> str:
    """Return the name of the study that a command continues: it differs if anything that affects the trials differs.

    Args:
        fixed: the settings that all trials share and that affect their losses, by key.
    """
    decisive = {key: value for key, field, value in leaves(settings) if setting_of(field).role is Role.experiment}
    dimensions = [(type(dimension).__name__, dataclasses.asdict(dimension)) for dimension in space]
    text = dump_json([decisive, sorted(dimensions, key=str), dict(fixed)], sort_keys=True, default=str)
    return f"{settings.sampler}_{settings.pruner}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def open_study(
    folder: Path, name: str, settings: OptunaConfig, space: Sequence[Dimension], max_steps: int
) -> OpenStudy:
    """Open a study in the folder of a sweep, or create it.

    Raises:
        RunError: the folder is a run; or the journal is damaged, or is a link or another special file.
        PathError: the folder cannot be created or locked.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    require_no_run(folder)
    made: list[Path] = []
    try:
        made = make_folders(folder)
        storage = open_journal(folder)
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="minimize",
            load_if_exists=True,
            sampler=SAMPLERS[settings.sampler](settings, space),
            pruner=PRUNERS[settings.pruner](settings, max_steps),
        )
    except NanolmError:
        remove_empty(made)
        raise
    except OSError as error:
        what = "the folder of the study is not writable"
        raise explain_os_error(error, what, where=str(folder), option="hydra.sweep.dir=FOLDER") from error
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise damaged_journal(folder, error) from error
    opened = OpenStudy(folder, space, settings, max_steps, storage, study)
    _check_space(opened)
    return opened


def _check_space(opened: OpenStudy) -> None:
    """Check that the values of all trials are from the search space: they become overrides.

    Raises:
        RunError: a value is from another one.
    """
    known = {dimension.key: distribution_of(dimension) for dimension in opened.space}
    for trial in opened.trials():
        for key, distribution in trial.distributions.items():
            if distribution != known.get(key):
                raise damaged_journal(
                    opened.folder, f"{key}={trial.params[key]} of trial {trial.number} is not from the search space"
                )


@contextlib.contextmanager
def register_sweeper(folder: Path) -> Iterator[str]:
    """Hold the lock of a new sweeper, by which others see that it is alive, and yield its name."""
    for left in folder.glob(".sweeper-*.lock"):
        _remove_released(left)
    sweeper = uuid.uuid4().hex[:12]
    path = _sweeper_lock(folder, sweeper)
    with Lock(path):
        try:
            # For the messages of others.
            with contextlib.suppress(OSError):
                write_text(path, Holder.of_this_process().format())
            yield sweeper
        finally:
            # Otherwise the next sweeper removes it.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def take_trials(opened: OpenStudy, sweeper: str, at_most: int) -> list[int]:
    """Assign the next trials to a sweeper: open trials of sweepers that have ended, or else new ones.

    Open trials are assigned first and alone, so that new trials are drawn from the same history as without a kill.

    Returns:
        The numbers of the trials.
    """
    with Lock(opened.folder / ".study.lock"):
        trials = opened.trials()
        abandoned = [trial.number for trial in trials if _is_abandoned(opened, trial, sweeper)][:at_most]
        n_new = 0 if abandoned else min(at_most, _n_missing(opened, trials))
        taken = []
        for number in [*abandoned, *[None] * n_new]:
            trial = opened.study.ask() if number is None else Trial(opened.study, opened.trial_id(number))
            trial.set_user_attr(OWNER, sweeper)
            trial.set_user_attr(FAILED, "")
            trial.set_user_attr(IMPOSSIBLE, "")
            for dimension in opened.space:
                _suggest(trial, dimension)
            taken.append(trial.number)
        return taken


def reject_trial(opened: OpenStudy, number: int, reason: str) -> None:
    """End a trial whose settings do not fit together, as failed in Optuna's terms."""
    opened.set_attribute(number, IMPOSSIBLE, reason)
    opened.study.tell(number, state=TrialState.FAIL)


def n_impossible(trials: Sequence[FrozenTrial]) -> int:
    """Return the number of trials whose settings do not fit together."""
    return sum(bool(trial.user_attrs.get(IMPOSSIBLE)) for trial in trials)


def shared_trials(opened: OpenStudy, sweeper: str) -> list[tuple[int, Path, RunDirectory]]:
    """Return the trials that other live sweepers run: the number, the sweeper's lock and the run of each.

    Failed trials wait for the next sweeper instead.
    """
    return [
        (
            trial.number,
            _sweeper_lock(opened.folder, trial.user_attrs.get(OWNER, "")),
            RunDirectory(opened.folder / trial.user_attrs.get(FOLDER, ".")),
        )
        for trial in opened.trials()
        if trial.state == TrialState.RUNNING
        and trial.user_attrs.get(OWNER) != sweeper
        and not trial.user_attrs.get(FAILED)
        and not _is_abandoned(opened, trial, sweeper)
    ]


def point_of(opened: OpenStudy, number: int) -> dict[str, Value]:
    """Return the values of a trial in the order of the search space."""
    params = opened.trials()[number].params
    try:
        return {dimension.key: params[dimension.key] for dimension in opened.space}
    except KeyError as error:
        raise damaged_journal(opened.folder, f"trial {number} has no {error}") from error


def _n_missing(opened: OpenStudy, trials: Sequence[FrozenTrial]) -> int:
    """Return the number of trials to add until n_trials of them are possible, or a grid has no more points."""
    n_missing = n_trials_of(opened.settings, opened.space) - (len(trials) - n_impossible(trials))
    if opened.settings.sampler == "grid":
        n_missing = min(n_missing, int(size_of(opened.space)) - len(trials))
    return max(n_missing, 0)


def _sweeper_lock(folder: Path, sweeper: str) -> Path:
    return folder / f".sweeper-{sweeper}.lock"


def _is_abandoned(opened: OpenStudy, trial: FrozenTrial, sweeper: str) -> bool:
    """Return whether a trial is open and the other sweeper that ran it has ended."""
    owner = trial.user_attrs.get(OWNER)
    if trial.state != TrialState.RUNNING or owner == sweeper:
        return False
    path = _sweeper_lock(opened.folder, owner or "")
    if owner is None or not path.exists():
        return True
    return _remove_released(path)


def _remove_released(path: Path) -> bool:
    """Remove the lock of a sweeper that has ended; return whether it has."""
    if is_held(path):
        return False
    for file in (path, soft_path(path)):
        file.unlink(missing_ok=True)
    return True


def _suggest(trial: Trial, dimension: Dimension) -> None:
    """Draw a value of a trial. A value that it has already, as after a kill, is kept."""
    if isinstance(dimension, Choice):
        trial.suggest_categorical(dimension.key, dimension.options)
    elif isinstance(dimension, Interval):
        trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.is_log)
    elif dimension.is_integer:
        low, high, step = int(dimension.low), int(dimension.high), int(dimension.step)
        trial.suggest_int(dimension.key, low, high, step=step, log=dimension.is_log)
    else:
        trial.suggest_float(dimension.key, dimension.low, dimension.high, step=dimension.step)
