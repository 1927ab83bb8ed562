"""The share of cores of each job, and sweeps through launchers that run jobs in other processes."""

import importlib.util
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from nanolm.machine import n_cores
from nanolm.runs.directory import RunDirectory
from nanolm.sweeps.launchers import concurrency, local_settings
from tests.helpers import SMALL, Nanolm

LOCAL = {"n_jobs": None, "gpus": "none", "jobs_per_gpu": 1}


def config_with(name: str, batch: int | None = None, **launcher: object) -> DictConfig:
    return OmegaConf.create(
        {
            "trainer": {"device": "cpu"},
            "hydra": {
                "launcher": launcher,
                "sweeper": {"max_batch_size": batch},
                "runtime": {"choices": {"hydra/launcher": name}},
            },
        }
    )


def local_config(**launcher: object) -> DictConfig:
    return config_with("local", **{**LOCAL, **launcher})


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for module in (concurrency, local_settings):
        monkeypatch.setattr(module, "n_cores", lambda: 8)


@pytest.mark.parametrize(
    ("config", "at_once", "batch", "threads"),
    [
        (config_with("basic"), 1, 1, None),
        (local_config(), 8, None, 1),
        (local_config(n_jobs=2), 2, None, 4),
        (local_config(n_jobs=16), 16, None, 1),
        (config_with("submitit_local", cpus_per_task=None), 8, 8, 1),
        (config_with("submitit_local", cpus_per_task=4), 2, 2, 4),
        (config_with("submitit_local", batch=3, cpus_per_task=1), 8, 3, 2),
        (config_with("submitit_slurm", cpus_per_task=6), None, None, 6),
        (config_with("ray"), None, None, None),
    ],
)
def test_concurrent_jobs_share_the_cores(
    config: DictConfig, at_once: int | None, batch: int | None, threads: int | None, eight_cores: None
) -> None:
    assert concurrency.concurrent_jobs(config) == at_once
    assert concurrency.batch_size(config) == batch
    assert concurrency.threads_per_job(config, n_jobs=100) == threads
    assert concurrency.is_in_process(config) == (batch == 1)


def test_threads_per_job_respects_few_jobs_and_omp_num_threads(
    eight_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert concurrency.threads_per_job(local_config(n_jobs=8), n_jobs=2) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert concurrency.threads_per_job(local_config(n_jobs=8), n_jobs=2) is None


def require(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


# Prints the number of threads of a job.
THREADS = """
import torch
from nanolm.registry import MASKS

@MASKS.register("reporting")
def reporting(query, key, config):
    print("threads", torch.get_num_threads(), flush=True)
    return key <= query
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "overrides"),
    [
        ("hydra_plugins.nanolm_launchers", ["hydra/launcher=local", "hydra.launcher.n_jobs=2"]),
        ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=2"]),
        ("hydra_plugins.hydra_ray_launcher", ["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2"]),
    ],
)
def test_launcher_runs_jobs_in_other_processes(
    module: str, overrides: list[str], nanolm: Nanolm, small_text: Path
) -> None:
    require(module)
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
    logs = [path.read_text() for path in (nanolm.folder / "sweep").glob(".submitit/*/*.out")]
    assert f"threads {share}" in done.stdout + "".join(logs)
    again = nanolm("train", "-m", *settings, f"dataset.path={small_text}", "hydra.sweep.dir=sweep", timeout=280)
    assert again.returncode == 0, again.stderr
    assert "1 job in sweep, 1 of them done" in again.stderr
