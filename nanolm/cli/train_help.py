"""The help of `nanolm train`: what can be chosen, and every setting with its documentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanolm.config.help import first_sentence, render_settings, wrap
from nanolm.errors import SettingsError, nearest
from nanolm.files import user_path

if TYPE_CHECKING:
    from omegaconf import DictConfig

WIDTH = 100

HELP = """\
nanolm train: train a model, or resume a run.

  nanolm train dataset=tiny_shakespeare tokenizer=char model=gpt size=tiny mask=causal trainer.max_steps=2000
  nanolm train dataset=text dataset.path=my_book.txt              your own text: a file, a directory or a glob
  nanolm train -m model=bigram,gpt2,gpt optimizer.lr=1e-3,3e-3    a sweep: a run for each combination
  nanolm train resume=outputs/RUN trainer.max_steps=4000          resume a run
  nanolm train ... resume=auto                                    resume an unfinished run with these settings
  nanolm train resume=outputs/RUN fork=true optimizer.lr=1e-4     start a new run from a checkpoint of RUN
  nanolm train ... trainer.max_minutes=10                         train for ten minutes; or max_tokens=5e6, ...
  nanolm train ... dry_run=true                                   estimate time and memory
  torchrun --nproc-per-node=4 -m nanolm train ...                 share each batch among four processes

Options, chosen as group=option (`nanolm train --help optimizer=muon` documents the settings of one):

{options}

Settings, given as key=value, with their defaults:

{settings}
How a run is started, given as key=value and not saved with the settings:

{launch}
Sweeps and flags:

  sweep.fail_fast=true    start no job after a failed one
  sweep.max_hours=8       start no job after 8 hours; the same command continues later
  hydra/launcher=local    run the jobs of a sweep at the same time, one for each GPU or core
  sweep.order=longest_first
                          the jobs with the most FLOPs first; by_seed: one seed after the other
  hydra.sweep.dir=FOLDER  directory of the runs of a sweep; the same command continues there
  hydra.run.dir=FOLDER    directory of the run
  --config-dir FOLDER     your own options, in addition to these
  --cfg job               print the settings of a command without running it
  --hydra-help            Hydra's other flags
"""


def train_help(overrides: Sequence[str] = (), config_dir: str | None = None) -> str:
    """Return the help of `nanolm train`.

    Args:
        overrides: options such as optimizer=muon whose settings are documented, instead of all settings.
        config_dir: a directory with the user's own options.

    Raises:
        SettingsError: there is no such group or option.
    """
    from nanolm.compose.command import compose_unresolved
    from nanolm.config.launch import Launch
    from nanolm.config.run import SETTING_GROUPS, Config

    for override in overrides:
        if "=" not in override and override not in SETTING_GROUPS:
            hint = nearest(override, SETTING_GROUPS)
            raise SettingsError(f"there is no group {override!r}", where="--help", hint=hint)
    # A group alone stands for its default option.
    composed = compose_unresolved([override for override in overrides if "=" in override], config_dir)
    named = [override.split("=")[0] for override in overrides]
    if asked := [group for group in SETTING_GROUPS if group in named]:
        return "\n".join(_group(composed, group, explains_choices=True) for group in asked)
    names = [field.name for field in dataclasses.fields(Config) if field.name not in SETTING_GROUPS]
    others = render_settings(Config, {name: composed[name] for name in names})
    settings = "\n".join([*(_group(composed, group) for group in SETTING_GROUPS), others])
    return HELP.format(options=_options(config_dir), settings=settings, launch=render_settings(Launch, width=WIDTH))


def _group(composed: DictConfig, group: str, explains_choices: bool = False) -> str:
    """The settings of the option that is chosen in a group."""
    from omegaconf import OmegaConf

    schema: Any = OmegaConf.get_type(composed[group])
    values: Any = OmegaConf.to_container(composed[group], resolve=False, enum_to_str=True)
    title = f"{group}={composed.hydra.runtime.choices[group]}"
    if summary := first_sentence(schema):
        title = "\n".join(wrap(summary, WIDTH, start=f"{title}: "))
    return f"{title}\n" + render_settings(schema, values, f"{group}.", WIDTH, explains_choices)


def _options(config_dir: str | None) -> str:
    """List the options of every group, including those in the user's directory."""
    from nanolm.compose import config_folder

    folders = [config_folder(), *([user_path(config_dir)] if config_dir else [])]
    options: dict[str, set[str]] = {}
    for path in (path.relative_to(folder) for folder in folders for path in folder.glob("*/**/*.yaml")):
        options.setdefault(path.parts[0], set()).add(Path(*path.parts[1:]).with_suffix("").as_posix())
    lines = (wrap(", ".join(sorted(names)), WIDTH, f"  {group + ':':<12}") for group, names in sorted(options.items()))
    return "\n".join(line for wrapped in lines for line in wrapped)
