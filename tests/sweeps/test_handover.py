"""The way of a planned job through a launcher."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.utils import create_config_search_path
from omegaconf import DictConfig

from nanolm.compose import CONFIG_NAME, choices_of, config_folder, register_schemas
from nanolm.compose.hydra_api import without_hydra
from nanolm.config.composed import to_config
from nanolm.errors import SettingsError
from nanolm.sweeps.combinations import combinations
from nanolm.sweeps.handover import PlannedJob, PlannedJobLoader, job_overrides
from nanolm.sweeps.planning import plan
from tests.helpers import SMALL


@pytest.fixture
def master() -> DictConfig:
    """What Hydra composes for a sweep."""
    register_schemas()
    with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
        return compose(CONFIG_NAME, overrides=["model=gpt", "hydra.sweep.dir=mine"], return_hydra_config=True)


def test_planned_job_reaches_the_launcher_unchanged(master: DictConfig, tmp_path: Path) -> None:
    overrides = ["model=bigram,gpt2", "optimizer.lr=0.1,1e-3", "mask=banded_causal", "dataset=text"]
    overrides.append("dataset.path='\\${a} ??? \u00fc.txt'")
    before = master.copy()
    loader = PlannedJobLoader(create_config_search_path(str(config_folder())))
    for job in plan(combinations([*SMALL, *overrides]), tmp_path):
        composed = loader.load_sweep_config(master, job_overrides(job))
        assert composed.hydra.sweep.subdir == job.run.path.name
        assert composed.hydra.sweep.dir == "mine"
        assert choices_of(composed.hydra.runtime.choices) == job.choices
        assert to_config(without_hydra(composed)) == job.config
        planned = PlannedJob.parse(job_overrides(job))
        assert (planned.folder, planned.choices, planned.plugins) == (job.run.path.name, job.choices, [])
        assert planned.load() == job.config
    assert master == before


def test_a_job_of_another_version_is_refused_with_both(tmp_path: Path) -> None:
    (job,) = plan(combinations([*SMALL, "dataset=text", "dataset.path=a.txt"]), tmp_path)
    (text,) = job_overrides(job)
    newer = text.replace(f'"version": "{version("nanolm")}"', '"version": "9.8.7", "later_field": 1')
    assert newer != text
    with pytest.raises(SettingsError, match=rf"nanolm 9\.8\.7, and its job with nanolm {re.escape(version('nanolm'))}"):
        PlannedJob.parse([newer]).load()
