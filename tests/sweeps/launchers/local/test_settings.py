"""The GPUs and slots of hydra/launcher=local, with a program that prints what nvidia-smi would."""

import itertools
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig

from nanolm.cli import main as cli
from nanolm.errors import SettingsError
from nanolm.sweeps.launchers import gpus
from nanolm.sweeps.launchers.gpus import chosen_gpus, gpus_of_process
from nanolm.sweeps.launchers.local import settings as local_settings
from nanolm.sweeps.launchers.local.settings import Slot, check_local
from tests.helpers import SMALL
from tests.sweeps.launchers.test_registry import local_config

Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Return a function that makes a machine with GPUs: the memory in use of each, in MiB of 1000, and processes."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(*used: int, processes: str = "") -> None:
        rows = "\n".join(f"{number}, GPU-{number}abc, 1000, {amount}" for number, amount in enumerate(used))
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\ncase $1 in *compute-apps*) echo '{processes}';; *) echo '{rows}';; esac\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    gpus.installed_gpus.cache_clear()
    yield make
    gpus.installed_gpus.cache_clear()


def numbers(setting: object) -> list[str]:
    return [gpu.number for gpu in chosen_gpus(setting)]


def config(device: str = "auto", **launcher: object) -> DictConfig:
    made = local_config(**{"gpus": "auto", **launcher})
    made.trainer.device = device
    return made


def slots(**settings: object) -> list[Slot]:
    return local_settings.slots(config(**settings))


def test_gpus_are_chosen_by_number_or_those_that_are_free(machine: Machine) -> None:
    machine(0, 900, 20, 0, processes="GPU-3abc, 77")
    assert numbers("auto") == ["0", "2"]
    assert numbers("none") == []
    assert numbers("0,2") == numbers([0, 2]) == ["0", "2"]
    assert numbers(2) == ["2"]


def test_only_visible_gpus_are_chosen(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(0, 0, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-0")
    assert numbers("auto") == ["0", "2"]
    with pytest.raises(SettingsError, match=r"GPU 1 is not visible: CUDA_VISIBLE_DEVICES=2,GPU-0"):
        chosen_gpus(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-8f")
    assert numbers("auto") == ["MIG-8f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert numbers("auto") == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("0,4,5", r"there is no GPU 4: this machine has GPUs 0 to 2[\s\S]*there is no GPU 5"),
        ("0,0", r"names a GPU twice[\s\S]*jobs_per_gpu=2"),
        ("all", r"hydra\.launcher\.gpus=all names no GPUs[\s\S]*gpus=auto"),
        ("", "names no GPUs"),
        ("-1", "names no GPUs"),
        ("1,2", r"GPU 1 is in use by process 77: 900\.0 MiB of 1,000\.0 MiB[\s\S]*hint:  hydra\.launcher\.gpus=0,2"),
    ],
)
def test_gpus_that_cannot_be_used_are_refused(setting: str, message: str, machine: Machine) -> None:
    machine(0, 900, 0, processes="GPU-1abc, 77")
    with pytest.raises(SettingsError, match=message):
        chosen_gpus(setting)


def test_a_machine_whose_gpus_are_all_taken_is_refused(machine: Machine) -> None:
    machine(900, 900)
    with pytest.raises(SettingsError, match=r"GPU 0 is in use: [\s\S]*GPU 1 is in use[\s\S]*wait for it"):
        chosen_gpus("auto")


def test_the_gpu_of_a_process_is_read_from_its_environment() -> None:
    with subprocess.Popen(["sleep", "60"], env={"A": "1", "CUDA_VISIBLE_DEVICES": "3"}) as process:
        assert gpus_of_process(process.pid) == "3"
        process.kill()
    with subprocess.Popen(["sleep", "60"], env={}) as process:
        assert gpus_of_process(process.pid) == ""
        process.kill()
    assert gpus_of_process(process.pid) == ""


def test_jobs_are_spread_over_gpus_and_never_above_their_number(machine: Machine) -> None:
    machine(0, 0, 0)
    for n_gpus, jobs_per_gpu in itertools.product((1, 2, 3), repeat=2):
        setting = ",".join(map(str, range(n_gpus)))
        made = slots(gpus=setting, jobs_per_gpu=jobs_per_gpu)
        used = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in made]
        assert Counter(used) == dict.fromkeys(setting.split(","), jobs_per_gpu)
        assert len(set(used[:n_gpus])) == n_gpus
    assert len(slots(n_jobs=2)) == 2
    with pytest.raises(SettingsError, match=r"7 jobs at a time on 3 GPUs, with 2 on each[\s\S]*jobs_per_gpu=3"):
        slots(n_jobs=7, jobs_per_gpu=2)


def test_jobs_on_the_cpu_have_no_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(0, 0)
    monkeypatch.setattr(local_settings, "n_cores", lambda: 5)
    assert [slot.environment for slot in slots(device="cpu")] == [{}] * 5
    assert len(slots(gpus="none")) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": "0", "device": "cpu"}, "names GPUs, and trainer.device=cpu uses none"),
        ({"n_jobs": 0, "jobs_per_gpu": -1}, r"n_jobs is 0[\s\S]*jobs_per_gpu is -1"),
        ({"device": "cuda:1"}, r"trainer\.device=cuda:1 is one GPU for all jobs[\s\S]*hint:  trainer\.device=cuda"),
        ({"gpus": "2,3"}, r"there is no GPU 2[\s\S]*there is no GPU 3"),
    ],
)
def test_mistakes_in_the_settings_are_found(settings: dict[str, object], message: str, machine: Machine) -> None:
    machine(0, 0)
    assert re.search(message, "\n".join(map(str, check_local(config(**settings)))))


def test_another_sweeper_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="hydra/launcher=local runs jobs that nanolm has planned"):
        cli.run(["train", "-m", *SMALL, "seed=1,2", "hydra/launcher=local", "hydra/sweeper=basic"])


def test_mistakes_are_reported_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpus, "installed_gpus", tuple)
    line = ["seed=1,2", "hydra/launcher=local", "hydra.launcher.gpus=0,1"]
    with pytest.raises(SettingsError, match=r"there is no GPU 0: nvidia-smi shows none[\s\S]*there is no GPU 1"):
        cli.run(["train", "-m", *SMALL, *line, "trainer.device=auto"])
    assert not list(tmp_path.iterdir())
