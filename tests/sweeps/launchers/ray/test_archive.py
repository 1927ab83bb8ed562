"""Archives of runs: the same files arrive, and nothing else does."""

import contextlib
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.errors import RunError
from nanolm.runs.directory import NAMES, RunDirectory
from nanolm.sweeps.launchers.ray import archive as run_archive
from nanolm.sweeps.launchers.ray.archive import FOLDERS, ORDER, Seal, pack, receive, unpack

FILES = [name for name in ORDER if name not in FOLDERS]
WITHIN = st.text(st.characters(exclude_characters="/\\:", exclude_categories=["C"]), min_size=1, max_size=40).filter(
    lambda text: text not in (".", "..") and len(text.encode()) < 100
)
CONTENTS = st.dictionaries(
    st.sampled_from(FILES) | st.tuples(st.sampled_from(FOLDERS), WITHIN, WITHIN).map("/".join),
    st.binary(max_size=1500),
    max_size=8,
)


def write(folder: Path, contents: dict[str, bytes]) -> RunDirectory:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    folder.mkdir(exist_ok=True)
    return RunDirectory(folder)


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def quick_folder() -> Iterator[Path]:
    """Yield a temporary folder, for one of many examples: nothing is flushed to disk."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(os, "fsync"):
        yield Path(folder)


def sealed(archive: bytes) -> list[bytes | Seal]:
    return [archive, Seal(len(archive), hashlib.sha256(archive).hexdigest())]


def hostile(*members: tarfile.TarInfo) -> list[bytes | Seal]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return sealed(buffer.getvalue())


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def test_archive_has_all_files_of_a_run_but_its_locks() -> None:
    assert {*ORDER, NAMES["lock"], NAMES["soft_lock"]} == set(NAMES.values())


@settings(max_examples=12, deadline=None, derandomize=True)
@given(before=CONTENTS, after=CONTENTS)
def test_received_run_has_the_files_of_the_sender(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    with quick_folder() as folder:
        sender = write(folder / "sender", {**after, ".lock": b"process 1", "notes.txt": b"of the user"})
        run = write(folder / "sweep" / "job", {**before, ".lock": b"process 2", "mine.txt": b"stays"})
        receive(pack(sender), run)
        assert read(run.path) == {**after, ".lock": b"process 2", "mine.txt": b"stays"}
        assert [path.name for path in run.path.parent.iterdir()] == ["job"]


def test_long_files_travel_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_archive, "CHUNK", 1000)
    contents = {"metrics.jsonl": bytes(range(256)) * 9000}
    chunks = list(pack(write(tmp_path / "sender", contents)))
    assert len(chunks) > 3
    unpack(chunks, tmp_path / "run")
    assert read(tmp_path / "run") == contents


def test_pack_leaves_links_out(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("private")
    run = write(tmp_path / "run", {"config.yaml": b"seed: 1"})
    run.metrics.symlink_to(tmp_path / "secret" / "key")
    run.checkpoints.symlink_to(tmp_path / "secret")
    run.wandb.mkdir()
    (run.wandb / "link").symlink_to(tmp_path / "secret" / "key")
    unpack(pack(run), tmp_path / "unpacked")
    assert read(tmp_path / "unpacked") == {"config.yaml": b"seed: 1"}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_archive_changes_nothing(data: st.DataObject) -> None:
    with quick_folder() as folder:
        archive, seal = pack(write(folder / "sender", {"config.yaml": b"seed: 1", "checkpoints/step-1/a": b"x" * 700}))
        assert isinstance(archive, bytes)
        at = data.draw(st.integers(0, len(archive) - 1))
        flipped = bytearray(archive)
        flipped[at] ^= 1 << data.draw(st.integers(0, 7))
        kinds = [[archive[:at], seal], [archive], [bytes(flipped), seal], [seal, archive], [archive, archive]]
        run = write(folder / "sweep" / "job", {"config.yaml": b"seed: 2"})
        with pytest.raises(RunError, match="archive of a run was refused"):
            receive(data.draw(st.sampled_from(kinds)), run)
        assert read(folder / "sweep") == {"job/config.yaml": b"seed: 2"}


@pytest.mark.parametrize(
    ("chunks", "problem"),
    [
        (hostile(member("/etc/cron.d/job")), "not the name of a file"),
        (hostile(member("../config.yaml")), "not the name of a file"),
        (hostile(member("wandb/../../../config.yaml")), "not the name of a file"),
        (hostile(member("checkpoints//config.yaml")), "not the name of a file"),
        (hostile(member("wandb/C:\\Windows\\a")), "not the name of a file"),
        (hostile(member("checkpoints/" + "a/" * 30 + "b")), "not the name of a file"),
        (hostile(member(".lock")), "not a file of a run"),
        (hostile(member("train.py")), "not a file of a run"),
        (hostile(member("config.yaml/a")), "not a file of a run"),
        (hostile(member("checkpoints")), "not a file of a run"),
        (hostile(member("metrics.jsonl", tarfile.SYMTYPE, "/etc/passwd")), "not a regular file"),
        (hostile(member("config.yaml"), member("metrics.jsonl", tarfile.LNKTYPE, "config.yaml")), "not a regular file"),
        (hostile(member("wandb", tarfile.SYMTYPE, "/tmp"), member("wandb/a")), "not a regular file"),
        (hostile(member("checkpoints", tarfile.DIRTYPE)), "not a regular file"),
        (hostile(member("train.log", tarfile.FIFOTYPE)), "not a regular file"),
        (hostile(member("train.log", tarfile.CHRTYPE)), "not a regular file"),
        (hostile(member("train.log", tarfile.GNUTYPE_SPARSE)), "not a regular file"),
        (hostile(member("config.yaml"), member("config.yaml")), "a name twice"),
        (hostile(member("wandb/a"), member("wandb/a/b")), "a name twice"),
        (sealed(b"\xff" * 2048), "bad checksum"),
        (sealed(b""), "empty"),
        (sealed(member("config.yaml", size=10**15).tobuf()), "unexpected end"),
    ],
)
def test_hostile_archive_writes_nothing(chunks: list[bytes | Seal], problem: str, tmp_path: Path) -> None:
    run = write(tmp_path / "sweep" / "job", {"config.yaml": b"seed: 2", "checkpoints/step-1/a": b""})
    before = read(tmp_path)
    with pytest.raises(RunError, match=problem):
        receive(chunks, run)
    assert read(tmp_path) == before
    assert [path.name for path in run.path.parent.iterdir()] == ["job"]


def test_archive_has_a_limit_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_archive, "MAX_FILES", 2)
    run = write(tmp_path / "job", {f"wandb/{number}": b"" for number in range(3)})
    with pytest.raises(RunError, match="more than 2 files"):
        unpack(pack(run), tmp_path / "unpacked")


def each_rename(run: RunDirectory, chunks: list[bytes | Seal], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Receive a run repeatedly, each time killed one rename later than before."""
    originals = {name: getattr(Path, name) for name in ("rename", "replace")}

    def counting(original: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def move(path: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return original(path, target)

        return move

    for name, original in originals.items():
        monkeypatch.setattr(Path, name, counting(original))
    for allowed in range(100):
        left = allowed
        try:
            receive(chunks, run)
        except KeyboardInterrupt:
            yield
        else:
            return


def test_killed_receipt_leaves_an_earlier_state_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {
        "config.yaml": b"seed: 1",
        "metrics.jsonl": b"1\n",
        "summary.json": b'{"status": "interrupted"}',
        "checkpoints/step-1/manifest.json": b"1",
        "error.txt": b"",
    }
    after = {
        "config.yaml": b"seed: 1",
        "metrics.jsonl": b"1\n2\n",
        "summary.json": b'{"status": "completed"}',
        "checkpoints/step-2/manifest.json": b"2",
    }
    chunks = list(pack(write(tmp_path / "sender", after)))
    run = write(tmp_path / "sweep" / "job", before)
    n_states = 0
    for _ in each_rename(run, chunks, monkeypatch):
        found = read(run.path)
        n_states += 1
        assert found["summary.json"] == before["summary.json"], "it is complete when everything has arrived"
        assert found["metrics.jsonl"].startswith(before["metrics.jsonl"])
        assert any(name.startswith("checkpoints/") for name in found)
        if "checkpoints/step-2/manifest.json" in found:
            assert found["metrics.jsonl"] == after["metrics.jsonl"]
    assert n_states >= 5
    assert read(run.path) == after
