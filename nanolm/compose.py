"""From the words on the command line to a Config.

Hydra composes; what it reports one at a time is gathered here, with the nearest valid name beside each mistake.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from nanolm.config import BASE_SCHEMAS, SINGLE_SCHEMAS, Config, changes_in_words, check, differing, flat, may_change
from nanolm.config_file import in_words, missing_values, to_config
from nanolm.errors import NanolmError, Problems, SettingsError, nearest, raise_all
from nanolm.registry import GROUPS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CONFIG_NAME = "train"

# What was composed before, by its words.
Bases = dict[tuple[str, ...], DictConfig]

# What it is called on the line, and by Hydra.
FAIL_FAST = "sweep.fail_fast"
HYDRA_FAIL_FAST = "hydra.sweeper.fail_fast"

# What brings a plugin of Hydra that is not there by itself.
EXTRAS = {
    ("hydra/launcher", "joblib"): "joblib",
    ("hydra/launcher", "ray"): "ray",
    ("hydra/launcher", "submitit_local"): "submitit",
    ("hydra/launcher", "submitit_slurm"): "submitit",
}

# The schema that Hydra's ConfigStore has for (group, name): to make them anew takes a third of the time of composing.
REGISTERED: dict[tuple[str, str], type[Any]] = {}

# A key in a list, such as scheduler.parts.0.gamma.
LIST_PART = re.compile(r"\.\d+(\.|$)")


def config_folder() -> Path:
    """The folder of the YAML files: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def import_plugins(names: Iterable[str]) -> None:
    """Imports the user's modules, whose decorators fill the tables. The current folder is looked in as well.

    Raises:
        SettingsError: a module is not found or fails as it is imported.
    """
    for name in names:
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            importlib.import_module(name)
        except NanolmError:
            raise
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == name.split(".")[0]
            raise SettingsError(
                f"the plugin {name!r} was not found"
                if missing
                else f"the plugin {name!r} fails when it is imported: {type(error).__name__}: {error}",
                where="plugins",
                mend=f"it is looked for in {Path.cwd()} and among the installed packages, by its module name",
            ) from error


def register_schemas() -> None:
    """Puts every dataclass into Hydra's ConfigStore, and makes a plugin's name an option of its group."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    if not REGISTERED:
        store.store(name="schema", node=Config)
        for name, schema in SINGLE_SCHEMAS.items():
            store.store(group="schema", name=name, node=schema)
    for group, registry in GROUPS.items():
        for name in {*registry.schemas, *registry}:
            schema = registry.schemas.get(name, BASE_SCHEMAS[group])
            if REGISTERED.get((group, name)) is schema:
                continue
            REGISTERED[group, name] = schema
            node = OmegaConf.structured(schema)
            node.name = name
            store.store(group=f"schema/{group}", name=name, node=node)
            if not (config_folder() / group / f"{name}.yaml").exists() and _is_plugin(group, name):
                store.store(group=group, name=name, node=node)


def _is_plugin(group: str, name: str) -> bool:
    registry = GROUPS[group]
    return name in registry and not registry[name].__module__.startswith("nanolm.")


@dataclasses.dataclass(frozen=True)
class Line:
    """A `nanolm train` line that composes.

    Attributes:
        config: its settings; of a sweep, those that all jobs share.
        run_directory: where hydra.run.dir points.
        run_directory_is_given: whether the user chose it.
        sweep_directory: where hydra.sweep.dir points.
        choices: the option chosen in each group, for people to read.
        given: the settings that the line names itself, group choices spread into their keys.
    """

    config: Config
    run_directory: Path
    run_directory_is_given: bool
    sweep_directory: Path
    choices: dict[str, str]
    given: set[str]


def compose_line(overrides: Sequence[str], config_dir: str | None = None, multirun: bool = False) -> Line:
    """Composes a line of overrides.

    Args:
        overrides: Hydra overrides, as typed.
        config_dir: the user's own folder of YAML files.
        multirun: whether several values of a setting may be given, separated by commas.

    Raises:
        SettingsError: with every mistake in the line.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise SettingsError(f"there is no folder {config_dir}", where="--config-dir", mend="name an existing folder")
    overrides = [*overrides, *_search_path(config_dir)]
    parsed = parse(overrides)
    import_plugins(_plugins_named(parsed, config_dir))
    register_schemas()
    with _hydra():
        misplaced = {at: error for at, override in enumerate(parsed) if (error := _misplaced(override, multirun))}
        if misplaced:
            rest = [override for at, override in enumerate(parsed) if at not in misplaced]
            raise_all([*misplaced.values(), *_diagnose(rest, multirun)])
        plain = [override.input_line for override in parsed if not (multirun and override.is_sweep_override())]
        first = [text for override in parsed for text in _expand(override, multirun)[:1]]
        try:
            composed = _compose(first)
            task = _without_hydra(composed)
            for override in parsed:
                for text in _expand(override, multirun)[1:]:
                    if _is_plain_value(override):
                        _with_values(task, parse([text]))
                    else:
                        _compose([*plain, text])
        except Exception as error:
            problems = _diagnose(parsed, multirun)
            raise_all(problems)
            in_lists = ", ".join(word.input_line or "" for word in parsed if LIST_PART.search(word.key_or_group))
            raise SettingsError(in_words(error), where=in_lists or "the command line") from error
        from hydra.core.hydra_config import HydraConfig

        HydraConfig.instance().set_config(composed)
        directory = Path(str(OmegaConf.select(composed, "hydra.run.dir")))
        return Line(
            config=to_config(task),
            run_directory=directory,
            run_directory_is_given=any(override.key_or_group == "hydra.run.dir" for override in parsed),
            sweep_directory=Path(str(OmegaConf.select(composed, "hydra.sweep.dir"))),
            choices=choices_of(composed.hydra.runtime.choices),
            given=_given(parsed, task),
        )


def choices_of(chosen: Any) -> dict[str, str]:
    """The option of each group that has one, of Hydra's `runtime.choices`."""
    return {
        group: str(option)
        for group, option in sorted(chosen.items())
        if not group.startswith("hydra/") and option is not None
    }


def compose_config(words: Sequence[str], bases: Bases) -> Config:
    """The settings of the line of one run, unchecked, for who asks for many.

    Hydra composes each choice of options once; plain values are set in copies of it, which is what Hydra does with
    them, in a tenth of the time.

    Args:
        words: overrides, none with several values.
        bases: what was composed before, by the words that are no plain values; what is missing is added.

    Raises:
        SettingsError: with every mistake in the line.
    """
    try:
        return _from_bases(parse(words), bases)
    except Exception:
        return compose_line(words).config


def _from_bases(line: Sequence[Override], bases: Bases) -> Config:
    values = [override for override in line if _is_plain_value(override)]
    others = [override.key_or_group for override in line if override not in values]
    if any(
        _is_part(value.key_or_group, key) or _is_part(key, value.key_or_group) for value in values for key in others
    ):
        values = []  # Such as ++a.b=2 behind a={b:1}: their order counts.
    rest = tuple(override.input_line or "" for override in line if override not in values)
    if rest not in bases:
        register_schemas()
        with _hydra():
            bases[rest] = _without_hydra(_compose(rest))
    return to_config(_with_values(bases[rest], values))


def _is_part(key: str, of: str) -> bool:
    return f"{key}.".startswith(f"{of}.") and "." in of


def compose_jobs(
    jobs: Sequence[Sequence[str]], config_dir: str | None = None, searched: Sequence[str] = ()
) -> list[Config]:
    """Composes the jobs of a sweep, each a line without several values, and checks their settings.

    Args:
        config_dir: the user's own folder of YAML files.
        searched: `hydra.searchpath=` words, which hold for all jobs.

    Raises:
        SettingsError: with every mistake in every job, each once.
    """
    lines = [parse([*words, *searched, *_search_path(config_dir)]) for words in jobs]
    import_plugins(dict.fromkeys(name for line in lines for name in _plugins_named(line, config_dir)))
    bases: Bases = {}
    configs: list[Config | None] = []
    for line in lines:
        try:
            configs.append(_from_bases(line, bases))
        except Exception:
            configs.append(None)
    problems: dict[str, NanolmError] = {}
    asked_about: set[str] = set()
    for at, words in enumerate(jobs):
        if configs[at] is None and asked_about.issuperset(words):
            continue
        try:
            # What does not compose is composed once more, by the one who says which words are to blame.
            config = configs[at] or compose_line([*words, *searched], config_dir, multirun=True).config
            configs[at] = config
            raise_all(check(config))
        except NanolmError as error:
            asked_about |= set(words) if configs[at] is None else set()
            found = error.problems if isinstance(error, Problems) else [error]
            problems |= {problem.found: problem for problem in found if problem.found not in problems}
    raise_all(list(problems.values()))
    return [config for config in configs if config is not None]


def _misplaced(override: Override, multirun: bool) -> SettingsError | None:
    """What is said of a sweep in the line of one run, or said several times of the one sweep."""
    key, word = override.key_or_group, (override.input_line or "").replace(HYDRA_FAIL_FAST, FAIL_FAST)
    is_study = key == "sweep"
    if not multirun and (is_study or key in (FAIL_FAST, "hydra/sweeper") or key.startswith("hydra.sweeper")):
        return SettingsError(
            f"{word} is about many runs", where="the command line", mend="nanolm train -m ... runs them"
        )
    if not (multirun and override.is_sweep_override()):
        return None
    if is_study:
        return SettingsError(f"{word} names several studies", where="sweep", mend="a line for each of them")
    if re.split(r"[./]", key)[0] == "hydra":
        return SettingsError(
            f"{word} gives several values of what a sweep has one of",
            where=key.replace(HYDRA_FAIL_FAST, FAIL_FAST),
            mend="one value; one with a comma in it is quoted: 'key=\"a,b\"'",
        )
    return None


def _is_plain_value(override: Override) -> bool:
    """Whether a word sets one setting that has a default, which no choice of an option hangs on."""
    is_change = not (override.is_add() or override.is_force_add() or override.is_delete())
    key = override.key_or_group
    return is_change and not key.startswith("hydra.") and ("." in key or key == "seed")


def _with_values(task: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """A copy with plain values set.

    Raises:
        OmegaConfBaseException: there is no such setting, or the value is of another type.
    """
    copied = task.copy()
    OmegaConf.set_struct(copied, True)
    for override in overrides:
        OmegaConf.update(copied, override.key_or_group, override.value(), merge=True)
    return copied


def continue_run(saved: Config, line: Line, is_fork: bool = False) -> tuple[Config, list[str]]:
    """The settings to go on with: the run's own, with what the line gives anew and may be changed.

    Args:
        saved: the run's.
        line: the line that goes on with it.
        is_fork: whether another run begins there, which may change anything.

    Returns:
        The config, and what changed as 'key: old -> new'.

    Raises:
        SettingsError: the line gives something that would make it another experiment.
    """
    before, wanted = flat(saved), flat(line.config)
    # Another option has other keys, and brings them all.
    chosen = {key.split(".")[0] for key in line.given if key.endswith(".name")}
    asked = line.given | {key for key in set(before) ^ set(wanted) if key.split(".")[0] in chosen}
    changed = {key: values for key, values in differing(saved, line.config).items() if key in asked}
    unknown = [key for key in changed if key not in before and key.split(".")[0] not in chosen | {"logger"}]
    raise_all(
        [
            SettingsError(
                f"the run has no setting {key}: its {(group := key.split('.')[0])} is {before[f'{group}.name']}",
                where=key,
                mend=f"choose another {group} on the line as well, as in {group}={wanted[f'{group}.name']}",
            )
            for key in unknown
        ]
    )
    refused = [key for key in changed if not (is_fork or may_change(key, saved))]
    raise_all(
        [
            SettingsError(
                f"the run was made with {key}={before.get(key)}, and the line says {wanted.get(key)}",
                where=key,
                mend="leave it out to go on with the run, add fork=true to begin another one where it stands, or start "
                "a new one without resume",
            )
            for key in refused
        ]
    )
    merged = OmegaConf.structured(saved)
    for key in changed:
        group = key.split(".")[0]
        if group == "logger" or f"{group}.name" in changed:
            merged[group] = OmegaConf.structured(getattr(line.config, group))
        else:
            OmegaConf.update(merged, key, wanted[key])
    if is_fork:
        merged.resume, merged.fork = line.config.resume, True
    return to_config(merged), changes_in_words(changed)


def quoted(value: str) -> str:
    """A string as a Hydra override carries it, whatever characters are in it."""
    # Backslashes count only where they stand before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"'{escaped}'"


def hidden_options(config_dir: str) -> list[str]:
    """Files in the user's folder that nanolm's own of the same name hide."""
    folder = Path(config_dir)
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*.yaml")))
    return [str(path) for path in files if (config_folder() / path).exists()]


def parse(overrides: Sequence[str]) -> list[Override]:
    """The words as Hydra understands them.

    Raises:
        SettingsError: with every word that is none.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException:
            problems.append(
                SettingsError(
                    f"cannot read {text!r}",
                    where="the command line",
                    mend="settings are key=value; a value with spaces or commas is quoted twice: 'key=\"a, b\"'",
                )
            )
    raise_all(problems)
    return parsed


def _plugins_named(parsed: Sequence[Override], config_dir: str | None) -> list[str]:
    """The modules in plugins=[...], on the line or in the experiment or sweep file that the line chooses."""
    named: list[str] = []
    for override in parsed:
        if override.key_or_group == "plugins":
            value = override.value()
            named += [str(name) for name in value] if isinstance(value, list) else [str(value)]
        elif override.key_or_group in ("experiment", "sweep"):
            folders = [config_folder(), *([Path(config_dir)] if config_dir else [])]
            for choice in (text.split("=", 1)[-1] for text in _expand(override, True)):
                paths = [folder / override.key_or_group / f"{choice}.yaml" for folder in folders]
                found = next((path for path in paths if path.exists()), None)
                named += (OmegaConf.select(OmegaConf.load(found), "plugins") or []) if found else []
    return named


@contextlib.contextmanager
def _hydra() -> Iterator[None]:
    """Hydra over our folder of YAML files, inside a sweep that Hydra itself leads as well as without one."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    leading = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = leading


def _search_path(config_dir: str | None) -> list[str]:
    """The word that makes Hydra look into the user's folder as well."""
    return [f"hydra.searchpath=[{quoted('file://' + str(Path(config_dir).resolve()))}]"] if config_dir else []


def _compose(overrides: Sequence[str]) -> DictConfig:
    from hydra import compose

    return compose(config_name=CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)


def _without_hydra(composed: DictConfig) -> DictConfig:
    task = composed.copy()
    OmegaConf.set_readonly(task, False)
    OmegaConf.set_struct(task, False)
    del task["hydra"]
    return task


def _expand(override: Override, multirun: bool) -> list[str]:
    """The overrides that a sweep makes of this one; itself when it sweeps nothing."""
    if not (multirun and override.is_sweep_override()):
        return [override.input_line]
    try:
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    except Exception:
        # Of an interval its sweeper tries more; here its lower end shows whether there is such a setting.
        low = getattr(override.value(), "start", None)
        return [] if low is None else [f"{override.get_key_element()}={low:.12g}"]


def _diagnose(parsed: Sequence[Override], multirun: bool) -> list[NanolmError]:
    """Tries every override alone, groups first, and returns what is wrong with each."""
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    search = [override.input_line for override in parsed if override.key_or_group == "hydra.searchpath"]
    # An experiment or a study may lie in the user's folder alone, which Hydra does not list.
    groups = sorted({*loader.list_groups(""), "experiment", "sweep"} - {"schema", "hydra"})
    problems: list[NanolmError] = []
    sound: list[str] = []
    values: list[Override] = []
    for override in parsed:
        key = override.key_or_group
        if not multirun and override.is_sweep_override():
            problems.append(
                SettingsError(
                    f"{override.input_line} gives several values",
                    where=key,
                    mend="add -m to run every combination, or quote the value: 'key=\"a,b\"'",
                )
            )
        elif key in ("hydra/launcher", "hydra/sweeper") and (problem := _no_such_plugin(override, loader)):
            problems.append(problem)
        elif key in groups or key.startswith("hydra/"):
            options = _options(loader, key, search)
            for text in _expand(override, multirun):
                choice = text.split("=", 1)[-1]
                if choice in options or choice == "null":
                    sound.append(text)
                else:
                    problems.append(
                        SettingsError(f"no {key} is called {choice!r}", where=key, mend=nearest(choice, options))
                    )
        else:
            values.append(override)
    one_per_group = {text.split("=", 1)[0]: text for text in sound}
    base = [*search, *one_per_group.values()]
    try:
        composed = _compose(base)
    except Exception as error:
        return [*problems, SettingsError(in_words(error), where=", ".join(base))]
    for text in sound:
        if text not in base:
            problems += _try([*(t for t in base if t.split("=", 1)[0] != text.split("=", 1)[0]), text], text)
    task = _without_hydra(composed)
    known = _known_keys(task)
    hydras = {f"hydra.{name}" for name in _known_keys(composed.hydra)}
    for override in values:
        key = override.key_or_group
        in_hydra = re.split(r"[./]", key)[0] == "hydra"
        if LIST_PART.search(key):
            continue  # a part of a list that another word gives: alone it means nothing
        if not in_hydra and key not in known:
            held = [name for name in (*known, *groups, FAIL_FAST) if name]
            problems.append(
                SettingsError(f"there is no setting {key!r}", where=override.input_line or key, mend=nearest(key, held))
            )
            continue
        for text in _expand(override, multirun):
            wrong = _try_value(task, text) if _is_plain_value(override) else _try([*base, text], text)
            if wrong and in_hydra and key not in hydras:
                wrong = [SettingsError(f"there is no setting {key!r}", where=text, mend=nearest(key, hydras))]
            problems += wrong
            if not wrong:
                sound.append(text)
    if problems:
        # What is right so far may still not fit together, and the reader wants to hear it now.
        fitting = {text.split("=", 1)[0]: text for text in (*search, *sound)}
        fitted = _without_hydra(_compose(list(fitting.values())))
        problems += missing_values(fitted) or check(to_config(fitted))
    return problems


def _no_such_plugin(override: Override, loader: Any) -> NanolmError | None:
    """What is wrong with a launcher or a sweeper that is not there, and what brings it."""
    key, name = override.key_or_group, str(override.value())
    options = _options(loader, key, [])
    if name in options:
        return None
    extra = EXTRAS.get((key, name))
    return SettingsError(
        f"no {key} is called {name!r}" if extra is None else f"the launcher {name} is not installed",
        where=f"{key}={name}",
        mend=nearest(name, options) if extra is None else f"pip install 'nanolm[{extra}]'",
    )


def _options(loader: Any, group: str, search: list[str]) -> list[str]:
    """What can be chosen in a group; what lies in folders of it by folder/name."""
    from hydra.core.object_type import ObjectType

    options = list(loader.get_group_options(group, ObjectType.CONFIG, CONFIG_NAME, search))
    for folder in loader.get_group_options(group, ObjectType.GROUP, CONFIG_NAME, search):
        options += [f"{folder}/{name}" for name in _options(loader, f"{group}/{folder}", search)]
    return options


def _try_value(task: DictConfig, text: str) -> list[NanolmError]:
    try:
        _with_values(task, parse([text]))
    except Exception as error:
        return [SettingsError(in_words(error), where=text)]
    return []


def _try(overrides: Sequence[str], text: str) -> list[NanolmError]:
    try:
        _compose(overrides)
    except Exception as error:
        return [SettingsError(in_words(error), where=text)]
    return []


def _known_keys(config: DictConfig) -> set[str]:
    """Every dotted key, those of groups included."""
    keys: set[str] = set()

    def walk(node: DictConfig, prefix: str) -> None:
        for name in map(str, node):
            key = f"{prefix}{name}"
            keys.add(key)
            child = None if OmegaConf.is_missing(node, name) else node._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none():
                walk(child, f"{key}.")

    walk(config, "")
    return keys


def _given(parsed: Sequence[Override], task: DictConfig) -> set[str]:
    """The keys that the line itself names; choosing an option names every key of its group."""
    known = _known_keys(task)
    given: set[str] = set()
    for override in parsed:
        key = override.key_or_group
        if key in ("experiment", "sweep"):
            continue
        # A part of a list (scheduler.parts.0.gamma) is given where the list is.
        given |= {name for name in known if f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")}
    return {key for key in given if not isinstance(OmegaConf.select(task, key, throw_on_missing=False), DictConfig)}
