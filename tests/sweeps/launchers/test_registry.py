"""The threads of each job, and sweeps through launchers that run jobs in other processes."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from nanolm.machine import n_cores
from nanolm.runs.directory import RunDirectory
from nanolm.sweeps.launchers import registry
from nanolm.sweeps.launchers.local import settings as local_settings
from tests.helpers import SMALL, Nanolm

LOCAL = {"n_jobs": None, "gpus": "none", "jobs_per_gpu": 1}


def config_with(name: str, batch: int | None = None, **launcher: object) -> DictConfig:
    return OmegaConf.create(
        {
            "trainer": {"device": "cpu"},
            "hydra": {
                "launcher": launcher,
                "sweeper": {"max_running": batch},
                "runtime": {"choices": {"hydra/launcher": name}},
            },
        }
    )


def local_config(batch: int | None = None, **launcher: object) -> DictConfig:
    return config_with("local", batch, **{**LOCAL, **launcher})


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for module in (registry, local_settings):
        monkeypatch.setattr(module, "n_cores", lambda: 8)


@pytest.mark.parametrize(
    ("config", "n_jobs", "threads"),
    [
        (config_with("basic"), 100, None),
        (config_with("other"), 100, None),
        (local_config(), 100, 1),
        (local_config(n_jobs=2), 100, 4),
        (local_config(n_jobs=16), 100, 1),
        (local_config(batch=3), 100, 2),
        (local_config(n_jobs=8), 2, 4),
    ],
)
def test_concurrent_jobs_share_the_cores(
    config: DictConfig, n_jobs: int, threads: int | None, eight_cores: None
) -> None:
    assert registry.threads_per_job(config, n_jobs) == threads


def test_a_launcher_under_another_name_is_recognized() -> None:
    own = config_with("cluster", _target_="hydra_plugins.nanolm_launchers.SlurmLauncher")
    assert registry.launcher_name(own) == "slurm"
    other = config_with("ray", _target_="hydra_plugins.other.RayLauncher")
    assert registry.launcher_name(other) == "ray"


def test_a_launcher_of_a_former_version_is_refused() -> None:
    (problem,) = registry.check(config_with("submitit_slurm"))
    assert "hydra/launcher=submitit_slurm was replaced" in str(problem)


def test_threads_per_job_respects_omp_num_threads(eight_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert registry.threads_per_job(local_config(), n_jobs=2) is None


# Writes the number of threads of a job.
THREADS = """
from pathlib import Path
import torch
from nanolm.registry import MASKS

@MASKS.register("reporting")
def reporting(query, key, config):
    Path("threads.txt").write_text(str(torch.get_num_threads()))
    return key <= query
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["hydra/launcher=local", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=slurm", "hydra.launcher.executor=local", "hydra.launcher.array_parallelism=2"],
    ],
)
def test_launcher_runs_jobs_in_other_processes(overrides: list[str], nanolm: Nanolm, small_text: Path) -> None:
    (nanolm.folder / "reporting.py").write_text(THREADS)
    nanolm.environment.pop("OMP_NUM_THREADS")
    settings = (
        *SMALL,
        "dataset=text",
        "trainer.max_steps=3",
        "seed=1",
        "plugins=[reporting]",
        "mask=reporting",
        *overrides,
    )
    missing = f"dataset.path={small_text},missing.txt,{small_text.parent}/./small.txt"
    done = nanolm("train", "-m", *settings, missing, "hydra.sweep.dir=sweep", timeout=280)
    assert done.returncode == 1, done.stderr
    assert "3 jobs: 2 completed, 1 failed" in done.stdout
    assert "missing.txt-" in done.stderr
    assert "failed: there is no file or folder matching 'missing.txt'" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    runs = [RunDirectory(path.parent) for path in (nanolm.folder / "sweep").glob("*/config.yaml")]
    assert [run.read_summary().status for run in runs] == ["completed"] * 2
    share = max(1, n_cores() // 2)
    assert (nanolm.folder / "threads.txt").read_text() == str(share)
    again = nanolm("train", "-m", *settings, f"dataset.path={small_text}", "hydra.sweep.dir=sweep", timeout=280)
    assert again.returncode == 0, again.stderr
    assert "1 job in sweep, 1 of them done" in again.stderr
