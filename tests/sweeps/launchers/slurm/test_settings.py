"""The settings of hydra/launcher=slurm and their checks."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from nanolm.cli import main as cli
from nanolm.errors import NanolmError, SettingsError
from nanolm.sweeps.launchers import registry
from nanolm.sweeps.launchers.slurm import settings as slurm_settings
from nanolm.sweeps.launchers.slurm.settings import Executor, SlurmConfig, check_slurm
from nanolm.torchrun import world_size
from tests.helpers import SMALL
from tests.sweeps.launchers.slurm.fake_slurm import install


def slurm_config(device: str = "auto", directory: str = "outputs/sweep", **launcher: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "trainer": {"device": device},
            "hydra": {
                "launcher": {**dataclasses.asdict(SlurmConfig()), **launcher},
                "sweep": {"dir": directory},
                "sweeper": {"max_running": None},
                "runtime": {"choices": {"hydra/launcher": "slurm"}},
            },
        }
    )


def problems(**settings: Any) -> list[NanolmError]:
    return list(check_slurm(slurm_config(**settings)))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 90.5), ("4:00:00", 240), ("1-12", 2160), ("1-12:30", 2190), ("1-00:00:30", 1440.5)],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(text: str, minutes: float) -> None:
    assert SlurmConfig(time_limit=text).minutes == minutes


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(install(tmp_path / "slurm").programs), prepend=":")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"time_limit": "4h"}, "time_limit is 4h, which is not a time"),
        ({"time_limit": "0:30"}, "time_limit is 0:30, which is less than a minute"),
        ({"time_limit": "2"}, "120 seconds before its time limit, which is only 120 seconds"),
        ({"mem": "lots"}, "mem is lots, which is not an amount of memory"),
        ({"nodes": 0}, "nodes is 0, and must be at least 1"),
        ({"nodes": 2, "device": "cpu"}, "nodes=2 is for jobs on GPUs, and trainer.device=cpu uses none"),
        ({"gpus_per_node": 1, "device": "cpu"}, "gpus_per_node=1, and trainer.device=cpu uses no GPU"),
        ({"gpus_per_node": 1, "device": "cuda:1"}, "trainer.device=cuda:1 is one GPU of a machine"),
        ({"device": "cuda"}, "trainer.device=cuda needs a GPU, and none is requested"),
        ({"nodes": 2, "executor": Executor.local}, "nodes=2, and hydra.launcher.executor=local has only this machine"),
        ({"additional_parameters": {"time": 5}}, "additional_parameters sets time, which is a setting of its own"),
        ({"directory": "100%"}, "has '%' in its name"),
        ({"directory": "a\nb"}, r"has '\n' in its name"),
    ],
)
def test_wrong_settings_are_found(settings: dict[str, Any], expected: str, slurm: None) -> None:
    (found,) = problems(**settings)
    assert expected in str(found)


def test_sound_settings_have_no_problem(slurm: None) -> None:
    assert not problems(gpus_per_node=2, nodes=2, mem="16G", time_limit="1-12", partition="gpu", device="cuda")
    assert not problems(device="cuda", additional_parameters={"gres": "gpu:a100:1"})
    assert not problems(device="cpu", executor=Executor.local)


def test_all_mistakes_are_reported_at_once_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(slurm_settings.importlib.util, "find_spec", lambda name: None)
    options = ("+hydra.launcher.additional_parameters.time=5", "+hydra.launcher.additional_parameters.mem=8G")
    with pytest.raises(SettingsError) as caught:
        cli.run(["train", "-m", *SMALL, "seed=1,2", "hydra/launcher=slurm", "hydra.launcher.nodes=2", *options])
    text = str(caught.value)
    assert caught.value.exit_status == 2
    assert "submitit is not installed" in text
    assert "submitit>=" in text or "[slurm]" in text
    assert "there is no sbatch and no squeue and no scancel and no srun on the PATH" in text
    assert "nodes=2 is for jobs on GPUs" in text
    assert "additional_parameters sets time" in text
    assert "additional_parameters sets mem" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_jobs_are_checked_for_the_processes_that_train_them(slurm: None, tmp_path: Path) -> None:
    words = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=3", f"hydra.sweep.dir={tmp_path}/sweep", "seed=1,2")
    small = [word for word in SMALL if not word.startswith("trainer.device")]
    with pytest.raises(SettingsError, match="3 processes"):
        cli.run(["train", "-m", *small, *words])
    assert not (tmp_path / "sweep").exists()
    assert world_size() == 1


@pytest.mark.parametrize(
    ("settings", "n_slots", "threads"),
    [
        ({"cpus_per_task": 6}, 32, 6),
        ({}, 32, None),
        ({"executor": Executor.local}, 8, 1),
        ({"executor": Executor.local, "cpus_per_task": 4}, 2, 4),
        ({"executor": Executor.local, "array_parallelism": 2}, 2, 4),
        ({"executor": Executor.local, "gpus_per_node": 2}, 4, 1),
    ],
)
def test_jobs_have_their_share_of_cores(
    settings: dict[str, Any], n_slots: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for module in (registry, slurm_settings):
        monkeypatch.setattr(module, "n_cores", lambda: 8)
    assert SlurmConfig(**settings).n_slots == n_slots
    assert registry.threads_per_job(slurm_config(**settings), n_jobs=100) == threads
