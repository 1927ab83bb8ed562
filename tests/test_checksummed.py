import os
from pathlib import Path

import pytest

from nanolm.checksummed import MANIFEST, Damage, FolderWriter, find_damage, read_manifest, remove_leftovers
from nanolm.files import temporary_sibling


def write(target: Path, content: bytes = b"abc") -> Path:
    with FolderWriter(target) as writer:
        file = writer.open("parts.bin")
        file.write(content)
        file.write(memoryview(b"def"))
        file.finish()
        (writer.path / "whole.txt").write_text("whole")
        writer.add("whole.txt")
        writer.commit({"step": 1, "loss": 0.1})
    return target


def test_committed_folder_is_read_back(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest["step"], manifest["loss"]) == (1, 0.1)
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {"parts.bin": 6, "whole.txt": 5}
    assert list(find_damage(folder)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_uncommitted_folder_is_removed(tmp_path: Path) -> None:
    files = []

    def fail() -> None:
        with FolderWriter(tmp_path / "a") as writer:
            files.append(writer.open("parts.bin"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="closed file"):
        files[0].write(b"")


def test_existing_folder_is_moved_on_commit(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with FolderWriter(tmp_path / "a") as writer:
        writer.commit({"step": 2}, move_existing_to=tmp_path / "a.old")
    assert [(read_manifest(tmp_path / name) or {})["step"] for name in ("a", "a.old")] == [2, 1]


@pytest.mark.parametrize("name", ["parts.bin", "whole.txt", MANIFEST])
def test_every_flipped_bit_is_found(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a") / name
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert [damage.name for damage in find_damage(tmp_path / "a")] == [name], f"bit {bit}"


def test_all_damaged_files_are_named_sizes_first(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / "parts.bin").write_bytes(b"abcdeF")
    os.truncate(folder / "whole.txt", 2)
    truncated, altered = find_damage(folder)
    assert str(truncated) == "whole.txt has 2 bytes, and was written with 5"
    assert str(altered).startswith("parts.bin has been altered (SHA-256 ")
    (folder / "parts.bin").unlink()
    assert Damage("parts.bin", "is missing") in list(find_damage(folder))
    (folder / MANIFEST).unlink()
    assert list(find_damage(folder)) == [Damage(MANIFEST, "is missing")]
    assert read_manifest(folder) is None


def test_leftovers_of_other_names_are_kept(tmp_path: Path) -> None:
    for name in (".a.123.tmp", ".b.123.tmp", "a"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, "a.*")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.123.tmp", "a"]


def test_folders_of_killed_writers_are_removed_by_the_next(tmp_path: Path) -> None:
    killed = temporary_sibling(tmp_path / "killed")
    (killed / "part").mkdir(parents=True)
    with FolderWriter(tmp_path / "a") as alive, FolderWriter(tmp_path / "b") as writer:
        writer.commit({})
        assert not killed.exists()
        alive.commit({})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
