"""Downloads from the hub, against a local server that has its routes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from tests.interop.hf_folders import GPT2, write_model
from tests.interop.hub_server import COMMITS, Server, serving

NAME = "someone/tiny-gpt2"

# huggingface_hub reads its settings when it is imported, so that each test runs a process.
pytestmark = pytest.mark.slow


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Server]:
    folder = write_model(tmp_path / "served", GPT2)
    for name in ("README.md", "flax_model.msgpack", "pytorch_model.bin", "tf_model.h5"):
        (folder / name).write_text("not needed")
    with serving(NAME, folder) as server:
        yield server


class Importer:
    """Runs `nanolm import` with its own cache of the hub."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nanolm", "import", *arguments],
            cwd=self.folder,
            env={**os.environ, "HF_HOME": str(self.folder / "hf"), "HF_ENDPOINT": self.server.url, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def downloaded(self) -> list[str]:
        """Return the names of the files that were sent since the last call."""
        names = [name for method, name, _ in self.server.requested if method == "GET"]
        self.server.requested.clear()
        return names


@pytest.fixture
def run_import(tmp_path: Path, hub: Server) -> Importer:
    return Importer(tmp_path, hub)


FILES = ["config.json", "merges.txt", "model.safetensors", "vocab.json"]


def test_hub_downloads_what_is_needed_once(run_import: Importer, tmp_path: Path) -> None:
    found = run_import(NAME, "--to", "run")
    assert (found.returncode, found.stderr) == (0, "")
    assert sorted(run_import.downloaded()) == FILES
    imported = RunDirectory(tmp_path / "run").read_summary().imported
    assert imported is not None
    assert (imported["source"], imported["revision"]) == (NAME, COMMITS["main"])
    assert sorted(imported["files"]) == FILES
    assert run_import(NAME, "--to", "again").returncode == 0
    assert run_import.downloaded() == []


def test_hub_downloads_a_revision(run_import: Importer, tmp_path: Path) -> None:
    for revision in ("v1", COMMITS["v1"]):
        assert run_import(NAME, "--to", revision, "--revision", revision).returncode == 0
        imported = RunDirectory(tmp_path / revision).read_summary().imported
        assert imported is not None
        assert imported["revision"] == COMMITS["v1"]


def test_hub_downloads_shards(run_import: Importer, hub: Server) -> None:
    (hub.folder / "model.safetensors").rename(hub.folder / "part-1.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "part-1.safetensors"}}
    (hub.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert run_import(NAME, "--to", "run").returncode == 0
    assert {"part-1.safetensors", "model.safetensors.index.json"} < set(run_import.downloaded())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((NAME, "--revision", "v3"), f"the model {NAME} has no revision v3"),
        (("someone/else",), "there is neither a folder someone/else here nor a model someone/else on the hub"),
        (("no such name!",), "there is no folder no such name!"),
    ],
)
def test_hub_names_what_does_not_exist(run_import: Importer, arguments: tuple[str, ...], problem: str) -> None:
    found = run_import(*arguments, "--to", "run")
    assert found.returncode == 2
    assert found.stderr.startswith(f"nanolm: {problem}\n")
    assert not (run_import.folder / "run").exists()


def test_hub_says_that_a_model_is_gated(run_import: Importer, hub: Server) -> None:
    hub.gated = True
    found = run_import(NAME, "--to", "run")
    assert (found.returncode, "to some users only" in found.stderr, "HF_TOKEN" in found.stderr) == (2, True, True)


NOWHERE = "http://127.0.0.1:9"


def test_hub_is_not_needed_for_what_is_in_the_cache(run_import: Importer) -> None:
    found = run_import(NAME, "--to", "run", HF_ENDPOINT=NOWHERE)
    assert found.returncode == 2
    assert (
        f"there is no folder {NAME} here, and the hub cannot be reached: [Errno 111] Connection refused" in found.stderr
    )
    assert "name their folder: nanolm import FOLDER --to RUN" in found.stderr
    assert run_import(NAME, "--to", "run").returncode == 0
    for name, environment in (("offline", {"HF_HUB_OFFLINE": "1"}), ("unreachable", {"HF_ENDPOINT": NOWHERE})):
        found = run_import(NAME, "--to", name, **environment)
        assert found.returncode == 0, found.stderr
        assert f"the hub cannot be reached: {NAME} is read from the cache, at commit aaaaaaaa" in found.stderr


def test_hub_that_does_not_answer_is_one_message(run_import: Importer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        found = run_import(NAME, "--to", "run", HF_ENDPOINT=address, HF_HUB_ETAG_TIMEOUT="1")
        assert (found.returncode, len(found.stderr.splitlines())) == (2, 3)
        assert "the hub cannot be reached: no answer within 1 s; HF_HUB_ETAG_TIMEOUT=60 waits" in found.stderr
        found = run_import(NAME, "--to", "run", HF_ENDPOINT=address)
        assert (found.returncode, "no answer within 5 s;" in found.stderr) == (2, True)


def test_hub_download_continues_where_it_broke(run_import: Importer, hub: Server) -> None:
    # A download is written in blocks of ten megabytes.
    write_model(hub.folder, GPT2 | {"n_positions": 800_000})
    hub.stops_at = 15_000_000
    found = run_import(NAME, "--to", "run")
    for _ in range(3):
        if found.returncode:
            found = run_import(NAME, "--to", "run")
    assert found.returncode == 0, found.stderr
    assert any(wanted and not wanted.startswith("bytes=0-") for _, _, wanted in hub.requested)


def test_hub_download_is_compared_with_its_checksum(run_import: Importer, hub: Server) -> None:
    hub.altered.add("model.safetensors")
    found = run_import(NAME, "--to", "run")
    assert found.returncode == 2
    assert "model.safetensors is not the file of the hub: its SHA-256 is" in found.stderr
    assert not (run_import.folder / "run").exists()


def test_hub_without_its_package_names_it(run_import: Importer) -> None:
    (run_import.folder / "huggingface_hub.py").write_text("raise ModuleNotFoundError('huggingface_hub')")
    found = run_import(NAME, "--to", "run", PYTHONPATH=f"{run_import.folder}:{Path.cwd()}")
    assert found.returncode == 2
    assert f"there is no folder {NAME}, and a name on the hub needs the package huggingface_hub" in found.stderr
    assert "pip install" in found.stderr
