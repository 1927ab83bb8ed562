"""What a sweep consists of: its jobs, and the folder of each, which its settings name.

A folder ends with a hash of all that decides what the job's run comes to. The words before it are for people: those
that differ in the line that first asked for the job. A later line finds the folder by the hash, whatever they say.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from nanolm import shell
from nanolm.compose import ComposedJob, as_hydra_reads, compose_jobs, parse
from nanolm.compose.ranges import MOST_VALUES
from nanolm.config.fields import flat
from nanolm.config.identity import differing, identity
from nanolm.config.run import Config
from nanolm.errors import NanolmError, RunError, SettingsError, explain_os_error, raise_all
from nanolm.files import wrong_file_types
from nanolm.json_text import dump_json
from nanolm.runs.directory import RunDirectory
from nanolm.runs.occupancy import require_no_run, require_startable

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Characters of a folder's name before the hash, and of one value in it: some file systems end at 143 bytes.
NAME_LENGTH = 100
VALUE_LENGTH = 40
KEY_LENGTH = 10

# What a job that failed at its start leaves besides the files of a killed start.
JOB_FILES = frozenset({"error.txt"})


@dataclasses.dataclass(frozen=True)
class Combination:
    """The words of one job.

    Attributes:
        words: overrides, as typed, none with several values.
        swept: those that the jobs of the sweep differ in, as {key: value} for people.
    """

    words: tuple[str, ...]
    swept: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep, planned.

    Attributes:
        swept: the settings in which the jobs differ, as {key: value} for people to read.
        choices: the option chosen in each group, as the run records it.
        key: a hash of the settings that decide the run's result; the folder's name ends with it.
    """

    swept: dict[str, str]
    config: Config
    choices: dict[str, str]
    key: str
    run: RunDirectory

    @property
    def name(self) -> str:
        """What it differs in from the others, for people."""
        return ", ".join(f"{key}={value}" for key, value in self.swept.items()) or "the one job"


def combinations(
    words: Sequence[str],
    params: Mapping[str, str] | None = None,
    variants: Mapping[str, Sequence[str]] | None = None,
) -> list[Combination]:
    """Every combination of the values of a line, of a study's params and of its variants.

    The line goes before a variant, and a variant before the params, where two of them give the same setting.

    Args:
        words: overrides as typed, with several values or one.
        params: further settings and their values, as {key: "1,2,3"}.
        variants: lists of overrides by name.

    Raises:
        SettingsError: with every word that cannot be read, or that is a range without an end of values, or there are
            too many combinations.
    """
    below = _by_key(parse(as_hydra_reads([f"{key}={value}" for key, value in (params or {}).items()], multirun=True)))
    above = _by_key(parse(words))
    by_name = {
        name: {**below, **_by_key(parse(as_hydra_reads(own))), **above} for name, own in (variants or {"": ()}).items()
    }
    n_jobs = sum(math.prod(map(len, axes.values())) for axes in by_name.values())
    if n_jobs > MOST_VALUES:
        raise SettingsError(
            f"the values of the settings combine to {n_jobs:,} jobs, more than {MOST_VALUES:,}",
            where=", ".join(dict.fromkeys(key for axes in by_name.values() for key in axes if len(axes[key]) > 1)),
            hint="fewer values, or a study that tries some of the combinations: hydra/sweeper=optuna",
        )
    found: list[Combination] = []
    for name, axes in by_name.items():
        swept = [key for key, texts in axes.items() if len(texts) > 1]
        for texts in itertools.product(*axes.values()):
            chosen = dict(zip(axes, texts, strict=True))
            values = {key: in_words(chosen[key]) for key in sorted(swept)}
            found.append(Combination(tuple(texts), {**({"variant": name} if name else {}), **values}))
    return found


def plan(
    wanted: Sequence[Combination],
    directory: Path,
    *,
    config_dir: str | None = None,
    searched: Sequence[str] = (),
) -> list[Job]:
    """The jobs of a sweep, all of them composed and checked; jobs that are the same experiment are one.

    Args:
        directory: of the sweep; folders of jobs that are new are made in it, empty.
        config_dir: the user's own folder of YAML files.
        searched: `hydra.searchpath=` words of the line.

    Raises:
        SettingsError: with every mistake in every job.
        RunError: the directory is a run, or a folder is a link, has links in it where its run writes, or holds what is
            not a run's.
        PathError: the folders cannot be made.
    """
    composed = compose_jobs([combination.words for combination in wanted], config_dir, searched)
    unique: dict[str, tuple[Combination, ComposedJob]] = {}
    problems: dict[str, SettingsError] = {}
    for combination, job in zip(wanted, composed, strict=True):
        config, key = job.config, key_of(job.config)
        if key not in unique:
            unique[key] = combination, job
        elif apart := differing(unique[key][1].config, config):
            text = ", ".join(apart)
            problems[text] = SettingsError(
                f"jobs differ only in {text}, which does not decide what a run comes to: they would share a folder",
                where=text,
                hint="a line for each value, each with a hydra.sweep.dir of its own",
            )
        if config.trainer.dry_run:
            problems["dry_run"] = SettingsError(
                "trainer.dry_run=true says what one run would come to, and -m makes many",
                where="trainer.dry_run",
                hint="the line of one of them, without -m",
            )
        if config.fork:
            problems["fork"] = SettingsError(
                "fork=true in a sweep is not known how to do", where="fork", hint="a line without -m for each fork"
            )
        elif config.resume not in ("never", "auto"):
            problems["resume"] = SettingsError(
                f"{shell.quote(f'resume={config.resume}')} goes on with one run, and -m makes many",
                where="resume",
                hint="leave it out: a sweep goes on with its own runs by itself",
            )
    raise_all(list(problems.values()))
    names = {key: name_of(combination.swept, key) for key, (combination, _) in unique.items()}
    folders = _reserve(directory, names)
    return [
        Job(combination.swept, job.config, job.choices, key, RunDirectory(folders[key]))
        for key, (combination, job) in unique.items()
    ]


def key_of(config: Config) -> str:
    """A hash of all that decides what a run comes to: its identity, how long it trains, and where its text lies.

    The same bytes at two places are one experiment, and two texts of a sweep are two: nothing is read to tell.
    """
    places = {key: value for key, value in flat(config).items() if key.startswith("dataset.") and key.endswith("path")}
    decisive = [identity(config), config.trainer.max_steps, places]
    return hashlib.sha256(dump_json(decisive, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


def name_of(swept: Mapping[str, str], key: str) -> str:
    """The folder of a job: what it differs in, in characters and a length that every file system takes, and its key."""
    words = ",".join(f"{name}={_safe(value)}" for name, value in swept.items())
    return f"{words[:NAME_LENGTH].rstrip(',=.')}-{key}" if words else f"run-{key}"


def folder_of(directory: Path, key: str, name: str) -> Path:
    """Where a job is: the folder that ends with its key, however it begins, else the one of that name."""
    return next(iter(sorted(directory.glob(f"*-{key}"))), directory / name)


def measure(jobs: Sequence[Job]) -> str:
    """The figure by which jobs compare: nats a token, or bits a byte where they do not read the same tokens."""
    kinds = {str(job.config.tokenizer) + str(job.config.dataset) for job in jobs}
    return "best_val_loss" if len(kinds) == 1 else "bits_per_byte"


def _reserve(directory: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """The folder of each job by its key. New ones are made, so that two lines at once do not name one job twice."""
    require_no_run(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / ".lock"):
            folders = {key: folder_of(directory, key, name) for key, name in names.items()}
            for folder in folders.values():
                folder.mkdir(exist_ok=True)
    except OSError as error:
        what = "the folder of the sweep cannot be written to"
        raise explain_os_error(error, what, where=str(directory), option="hydra.sweep.dir=FOLDER") from error
    raise_all(_not_own(directory, list(folders.values())))
    return folders


def _not_own(directory: Path, folders: Sequence[Path]) -> list[NanolmError]:
    """Links and special files in the place of a job's folder or of what its run writes, and files of something else."""
    if found := wrong_file_types(directory, [], folders):
        return [
            RunError(
                f"the runs of the sweep cannot be written: {', '.join(found)}",
                where=str(directory),
                hint="nanolm does not write through links: move the folder to its place, or remove the link",
            )
        ]
    problems: list[NanolmError] = []
    for folder in folders:
        try:
            require_startable(RunDirectory(folder).require_own(), also=JOB_FILES)
        except RunError as error:
            problems.append(error)
    return problems


def in_words(override: str) -> str:
    """The value of a word for people, the same however it was typed: 1e-3 and 0.001 are one."""
    (parsed,) = parse([override])
    value = parsed.value()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, str) else dump_json(value, default=str)


def _by_key(parsed: Sequence[Override]) -> dict[str, list[str]]:
    """The words by their setting, a word with several values as one for each; a later word replaces an earlier one."""
    from hydra.core.global_hydra import GlobalHydra

    problems, found = [], {}
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    for override in parsed:
        override.config_loader = override.config_loader or loader
        if not override.is_sweep_override():
            found[override.key_or_group] = [override.input_line]
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            texts = [f"{key}={value}" for value in override.sweep_string_iterator()]
            found[override.key_or_group] = texts
            if not texts:
                problems.append(
                    SettingsError(
                        f"{override.input_line} has no value in it",
                        where=override.key_or_group,
                        hint="name one at least, or leave it out",
                    )
                )
        else:
            problems.append(
                SettingsError(
                    f"{override.input_line} is a range, of which a grid cannot take every value",
                    where=override.key_or_group,
                    hint="name the values, as in optimizer.lr=1e-3,3e-3, or range(1,4) for whole numbers",
                )
            )
    raise_all(problems)
    return found


def _safe(value: Any) -> str:
    """Only characters that need no quotes in a shell or a path; of a long value the end, which tells paths apart."""
    return re.sub(r"[^\w.+-]+", "_", str(value), flags=re.ASCII)[-VALUE_LENGTH:]
