"""Settings of hydra/launcher=ray, and clusters on which no job can run."""

import importlib.util
import socket
import time
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from nanolm.errors import NanolmError, SettingsError
from nanolm.machine import n_cores
from nanolm.sweeps.launchers import gpus, registry
from nanolm.sweeps.launchers.ray.connection import RayConnection
from nanolm.sweeps.launchers.ray.jobs import job_environment
from nanolm.sweeps.launchers.ray.settings import (
    Node,
    RayConfig,
    check_ray,
    gpus_per_job,
    slots_of,
    split_address,
    unfit,
)

NODES = [Node("first", 8, 2), Node("second", 4, 0)]


def config_with(device: str = "auto", **settings: Any) -> DictConfig:
    launcher = OmegaConf.structured(RayConfig(**settings))
    return OmegaConf.create(
        {
            "trainer": {"device": device},
            "hydra": {"launcher": launcher, "sweeper": {}, "runtime": {"choices": {"hydra/launcher": "ray"}}},
        }
    )


def problems(device: str = "auto", **settings: Any) -> list[str]:
    return [error.found for error in check_ray(config_with(device, **settings))]


@pytest.fixture(autouse=True)
def _without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "installed_gpus", lambda: ())


def test_default_settings_fit_this_machine() -> None:
    assert problems() == []
    assert registry.threads_per_job(config_with(num_cpus=2.0), n_jobs=9) == 2
    assert registry.threads_per_job(config_with(num_cpus=0.5), n_jobs=9) == 1


def test_missing_ray_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (error,) = check_ray(config_with())
    assert error.found == "Ray is not installed"
    assert error.hint.startswith("pip install")
    assert "ray" in error.hint


@pytest.mark.parametrize(
    ("device", "settings", "found"),
    [
        ("auto", {"num_cpus": 0.0}, ["num_cpus is 0.0"]),
        ("auto", {"num_cpus": 1.5}, ["num_cpus is 1.5: Ray gives fractions of one, and whole numbers"]),
        ("auto", {"num_gpus": -1.0, "max_retries": -1}, ["num_gpus is -1.0", "max_retries is -1"]),
        ("auto", {"connect_timeout": 0.0}, ["connect_timeout is 0.0"]),
        ("auto", {"connect_timeout": float("inf")}, ["connect_timeout is inf"]),
        ("auto", {"shared_disk": "maybe"}, ["shared_disk is maybe"]),
        ("auto", {"address": "head"}, ["address=head is not host:port"]),
        ("auto", {"address": "head:70000"}, ["address=head:70000 is not host:port"]),
        ("auto", {"address": ""}, ["address= is not host:port"]),
        ("auto", {"address": "ray://head:10001"}, ["is an address of Ray Client"]),
        ("cpu", {"num_gpus": 1.0}, ["num_gpus is 1, and trainer.device=cpu uses none"]),
        ("cuda:1", {}, ["trainer.device=cuda:1 is one GPU for all jobs"]),
        ("cuda", {}, ["trainer.device=cuda, and no node has a GPU"]),
        ("auto", {"num_gpus": 1.0}, ["each job takes 1 core, 1 GPU, more than any node has"]),
        ("auto", {"num_cpus": 1e6}, ["each job takes 1e+06 cores, 0 GPUs"]),
        ("cuda:1", {"num_cpus": 0.0, "address": "head"}, ["num_cpus", "address=head", "cuda:1"]),
    ],
)
def test_wrong_settings_are_reported_together(device: str, settings: dict[str, Any], found: list[str]) -> None:
    reported = problems(device, **settings)
    assert len(reported) == len(found)
    assert all(text in problem for text, problem in zip(found, reported, strict=True))


def test_addresses() -> None:
    assert split_address("head.cluster:6379") == ("head.cluster", 6379)
    assert split_address("[fe80::1]:6379") == ("fe80::1", 6379)


@pytest.mark.parametrize(
    ("n_cpus", "n_gpus", "slots"),
    [(1, 0, [8, 4]), (3, 0, [2, 1]), (0.1, 0, [80, 40]), (1, 1, [2, 0]), (1, 0.4, [5, 0])],
)
def test_slots_of_a_node(n_cpus: float, n_gpus: float, slots: list[int]) -> None:
    assert [slots_of(node, n_cpus, n_gpus) for node in NODES] == slots


def test_each_job_takes_a_gpu_if_there_is_one() -> None:
    assert gpus_per_job(RayConfig(), "auto", NODES) == 1
    assert gpus_per_job(RayConfig(), "cpu", NODES) == 0
    assert gpus_per_job(RayConfig(), "auto", NODES[1:]) == 0
    assert gpus_per_job(RayConfig(num_gpus=0.5), "auto", NODES) == 0.5
    (error,) = unfit(NODES, RayConfig(num_gpus=0.0), "cuda")
    assert error.found == "trainer.device=cuda, and hydra.launcher.num_gpus=0"


def test_nodes_with_other_versions_are_refused() -> None:
    nodes = [*NODES, Node("third", 8, 0, problem="it has torch 2.0, and this process has torch 2.1")]
    (error,) = unfit(nodes, RayConfig(address="head:1"), "auto")
    assert error.found == "third cannot run jobs: it has torch 2.0, and this process has torch 2.1"


def test_environment_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_LOCK", "soft")
    assert job_environment(is_shared=True, n_gpus=0.5) == {"NANOLM_LOCK": "soft"}
    assert job_environment(is_shared=False, n_gpus=0) == {"CUDA_VISIBLE_DEVICES": ""}
    monkeypatch.delenv("NANOLM_LOCK")
    assert job_environment(is_shared=True, n_gpus=1) == {"NANOLM_LOCK": ""}


def test_closed_port_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    (error,) = check_ray(config_with(address=address, connect_timeout=60.0))
    assert isinstance(error, SettingsError)
    assert error.found == "the Ray cluster does not answer: Connection refused"


def test_silent_address_ends_the_process_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = RayConfig(address=f"127.0.0.1:{silent.getsockname()[1]}", connect_timeout=0.2)
        began = time.monotonic()
        with RayConnection(settings) as connection, pytest.raises(NanolmError, match=r"does not answer within 0\.2 s"):
            connection.nodes()
    assert time.monotonic() - began < 10
    assert not connection._process.is_alive()
    assert not connection._scratch.exists()


def test_local_cluster_has_the_cores_of_this_process() -> None:
    (error,) = check_ray(config_with(num_cpus=float(n_cores() + 1)))
    assert f"{n_cores()} core" in error.found
