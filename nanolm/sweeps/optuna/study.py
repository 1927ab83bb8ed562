"""A study of Optuna's in the folder of its sweep: who has which trial, what it reports, and how it ends.

The journal is a file of JSON lines, brought to disk at each. Optuna's own locks are files that stay for half a minute
when their holder is killed; these are the kernel's, and go with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from nanolm.config.fields import Role, leaves, setting_of
from nanolm.errors import RunError
from nanolm.files import open_regular, wrong_file_types
from nanolm.json_text import dump_json, parse_json
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import VAL, val_losses
from nanolm.runs.occupancy import require_no_run
from nanolm.sweeps.optuna.pruners import PRUNERS
from nanolm.sweeps.optuna.samplers import FAILED, SAMPLERS
from nanolm.sweeps.optuna.settings import OptunaConfig, n_trials_of
from nanolm.sweeps.optuna.space import Choice, Dimension, Interval, Value, size_of
from nanolm.sweeps.states import Report, State

JOURNAL = "study.journal"
# How Optuna begins every line of it.
BEGINNING = b'{"op_code":'

# What a trial's user_attrs say besides: which sweeper has it, where it runs, and what its pruner has decided so far.
OWNER = "owner"
FOLDER = "folder"
KEPT = "kept_at_step"
PRUNED = "pruned_at_step"
# Why the settings of a trial do not fit together. Such a trial is over, and does not count towards n_trials.
IMPOSSIBLE = "impossible"


class KernelLock:
    """A lock that ends with the process that holds it; whoever gets it takes off a line that a kill cut short."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        drop_torn_line(self._path)
        return True

    def release(self) -> None:
        self._lock.release()


def drop_torn_line(path: Path) -> None:
    """Cuts off what stands behind the last line end of a file."""
    with open_regular(path, "rb+") as file:
        length = file.seek(0, os.SEEK_END)
        if length == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


@dataclasses.dataclass(frozen=True)
class OpenStudy:
    """A study and what it is about.

    Attributes:
        folder: of the sweep.
        space: what its trials let vary.
        settings: those of hydra.sweeper.
        max_steps: of a trial that comes to its end.
    """

    folder: Path
    space: Sequence[Dimension]
    settings: OptunaConfig
    max_steps: int
    storage: JournalStorage
    study: optuna.Study

    def trials(self) -> list[FrozenTrial]:
        """All of them, by number."""
        return self.study.get_trials(deepcopy=False)

    def id_of(self, number: int) -> int:
        """What the storage calls a trial."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def mark(self, number: int, key: str, value: Any) -> None:
        """Keeps something about a trial."""
        self.storage.set_trial_user_attr(self.id_of(number), key, value)


def name_of(settings: OptunaConfig, space: Sequence[Dimension], fixed: Mapping[str, Any]) -> str:
    """The name of the study that a line goes on with: another one for whatever would make its trials others.

    Args:
        fixed: what all trials share and what decides their losses, by key.
    """
    decisive = {key: value for key, field, value in leaves(settings) if setting_of(field).role is Role.experiment}
    dimensions = [(type(dimension).__name__, dataclasses.asdict(dimension)) for dimension in space]
    text = dump_json([decisive, sorted(dimensions, key=str), dict(fixed)], sort_keys=True, default=str)
    return f"{settings.sampler}_{settings.pruner}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def open_study(
    folder: Path, name: str, settings: OptunaConfig, space: Sequence[Dimension], max_steps: int
) -> OpenStudy:
    """The study of that name in a sweep's folder, which is begun if it is not there.

    Raises:
        RunError: the folder is a run; or the journal is damaged, or is a link or another special file.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / JOURNAL
    require_no_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if found := wrong_file_types(folder, [path], []):
        raise RunError(
            f"the study's journal cannot be written: {', '.join(found)}",
            where=str(folder),
            hint="put a copy in its place: nanolm does not write through links",
        )
    try:
        _require_journal(path)
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=KernelLock(path)))
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="minimize",
            load_if_exists=True,
            sampler=SAMPLERS[settings.sampler](settings, space),
            pruner=PRUNERS[settings.pruner](settings, max_steps),
        )
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise _damaged(path, error) from error
    return OpenStudy(folder, space, settings, max_steps, storage, study)


def _require_journal(path: Path) -> None:
    """Check a file before Optuna appends to it. Its last line may be cut short.

    Raises:
        ValueError: it is not a journal.
    """
    if not path.exists():
        return
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        entry = parse_json(line)
        if not isinstance(entry, dict) or "op_code" not in entry:
            raise ValueError(f"line {number} is not an entry of a journal")
    if not last.startswith(BEGINNING) and not BEGINNING.startswith(last):
        raise ValueError("the last line is not an entry of a journal")


@contextlib.contextmanager
def owner(folder: Path) -> Iterator[str]:
    """A name for this sweeper by which others can tell whether it still lives."""
    name = uuid.uuid4().hex[:12]
    lock = FileLock(_owner_file(folder, name))
    folder.mkdir(parents=True, exist_ok=True)
    with lock:
        try:
            yield name
        finally:
            _owner_file(folder, name).unlink(missing_ok=True)


def take(opened: OpenStudy, me: str, at_most: int) -> list[int]:
    """Numbers of the trials to run next: those that a sweeper left behind when it ended, or else new ones.

    What was left behind goes first and alone, so that new trials are drawn from what they would have been drawn from.
    """
    with FileLock(opened.folder / ".study.lock"):
        trials = opened.trials()
        left = [trial.number for trial in trials if _is_left(opened, trial, me)][:at_most]
        new = 0 if left else min(at_most, _missing(opened, trials))
        taken = []
        for number in [*left, *[None] * new]:
            trial = opened.study.ask() if number is None else Trial(opened.study, opened.id_of(number))
            trial.set_user_attr(OWNER, me)
            trial.set_user_attr(FAILED, "")
            trial.set_user_attr(IMPOSSIBLE, "")
            for dimension in opened.space:
                _draw(trial, dimension)
            taken.append(trial.number)
        return taken


def reject(opened: OpenStudy, number: int, reason: str) -> None:
    """End a trial whose settings do not fit together: failed, as Optuna's samplers know it."""
    opened.mark(number, IMPOSSIBLE, reason)
    opened.study.tell(number, state=TrialState.FAIL)


def n_impossible(trials: Sequence[FrozenTrial]) -> int:
    """The number of trials whose settings do not fit together."""
    return sum(bool(trial.user_attrs.get(IMPOSSIBLE)) for trial in trials)


def others_at_work(opened: OpenStudy, me: str) -> bool:
    """Whether another sweeper, still alive, runs trials of this study. One that failed waits for the next sweeper."""
    return any(
        trial.state == TrialState.RUNNING
        and trial.user_attrs.get(OWNER) != me
        and not trial.user_attrs.get(FAILED)
        and not _is_left(opened, trial, me)
        for trial in opened.trials()
    )


def point_of(opened: OpenStudy, number: int) -> dict[str, Value]:
    """What a trial chose, in the order of the space."""
    params = opened.trials()[number].params
    try:
        return {dimension.key: params[dimension.key] for dimension in opened.space}
    except KeyError as error:
        raise _damaged(opened.folder / JOURNAL, f"trial {number} has no {error}") from error


def _damaged(path: Path, reason: object) -> RunError:
    return RunError(
        f"the study's journal is damaged: {reason}",
        where=str(path),
        hint="move it away: a new study reads what runs are in the folder and trains none of them again",
    )


@dataclasses.dataclass(frozen=True)
class Watch:
    """What a job of a study takes along, into whatever process: by the folder of its run it finds its trial."""

    folder: str
    name: str
    settings: OptunaConfig
    space: tuple[Dimension, ...]
    max_steps: int

    def __call__(self, run: RunDirectory) -> Callable[[int, float], bool] | None:
        """What the run asks after each evaluation; None where no open trial has it."""
        opened = open_study(Path(self.folder), self.name, self.settings, self.space, self.max_steps)
        mine = [trial.number for trial in opened.trials() if trial.user_attrs.get(FOLDER) == run.path.name]
        mine = [number for number in mine if opened.trials()[number].state == TrialState.RUNNING]
        return watch(opened, mine[0], run) if mine else None


def watch(opened: OpenStudy, number: int, run: RunDirectory) -> Callable[[int, float], bool]:
    """What the run of a trial asks after each evaluation, with the step and the loss: whether it is given up.

    A loss is reported once and decided upon once, whoever trains the trial and how often it is cut off.
    """
    earlier = val_losses(run.read_metrics(VAL)) if run.exists() else {}

    def should_prune(step: int, loss: float) -> bool:
        report(opened, number, {**{before: value for before, value in earlier.items() if before < step}, step: loss})
        trial = opened.trials()[number]
        if trial.user_attrs.get(PRUNED) is not None:
            return step >= trial.user_attrs[PRUNED]
        if step <= trial.user_attrs.get(KEPT, 0) or step >= opened.max_steps:
            return False
        hopeless = opened.study.pruner.prune(opened.study, trial)
        opened.mark(number, PRUNED if hopeless else KEPT, step)
        return hopeless

    return should_prune


def report(opened: OpenStudy, number: int, losses: Mapping[int, float]) -> None:
    """Tells the study the validation losses of a trial, by step; those that it has already are left as they are."""
    known = opened.trials()[number].intermediate_values
    for step, loss in sorted(losses.items()):
        if step not in known:
            opened.storage.set_trial_intermediate_value(opened.id_of(number), step, loss)


def settle(opened: OpenStudy, number: int, run: RunDirectory, outcome: Report) -> bool:
    """Ends a trial by what its run has come to; returns False, and leaves it open, where that is no result.

    A run that diverged is as bad as can be. To a study without a pruner a run that another one gave up is no result.
    """
    if outcome.state is State.completed:
        report(opened, number, val_losses(run.read_metrics(VAL)))
        opened.study.tell(number, outcome.value)
    elif outcome.state is State.diverged:
        opened.study.tell(number, math.inf)
    elif outcome.state is State.pruned and opened.settings.prunes:
        report(opened, number, val_losses(run.read_metrics(VAL)))
        opened.study.tell(number, state=TrialState.PRUNED)
    else:
        if outcome.state is State.failed:
            opened.mark(number, FAILED, outcome.error or "failed")
        return False
    return True


def _missing(opened: OpenStudy, trials: Sequence[FrozenTrial]) -> int:
    """The number of trials to add until as many as n_trials are possible, or a grid has no more points."""
    missing = n_trials_of(opened.settings, opened.space) - (len(trials) - n_impossible(trials))
    if opened.settings.sampler == "grid":
        missing = min(missing, int(size_of(opened.space)) - len(trials))
    return max(missing, 0)


def _owner_file(folder: Path, name: str) -> Path:
    return folder / f".sweeper-{name}.lock"


def _is_left(opened: OpenStudy, trial: FrozenTrial, me: str) -> bool:
    """Whether a trial is open and the sweeper that had it has ended."""
    holder = trial.user_attrs.get(OWNER)
    if trial.state != TrialState.RUNNING or holder == me:
        return False
    path = _owner_file(opened.folder, holder or "")
    if holder is None or not path.exists():
        return True
    try:
        with FileLock(path, timeout=0):
            path.unlink(missing_ok=True)
            return True
    except Timeout:
        return False


def _draw(trial: Trial, dimension: Dimension) -> None:
    """Has a trial choose in a dimension; what it has chosen before, which a kill may have cut short, stays."""
    if isinstance(dimension, Choice):
        trial.suggest_categorical(dimension.key, dimension.words)
    elif isinstance(dimension, Interval):
        trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.is_log)
    elif dimension.is_whole:
        low, high, step = int(dimension.low), int(dimension.high), int(dimension.step)
        trial.suggest_int(dimension.key, low, high, step=step, log=dimension.is_log)
    else:
        trial.suggest_float(dimension.key, dimension.low, dimension.high, step=dimension.step)
