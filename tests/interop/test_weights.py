import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nanolm.errors import NanolmError
from nanolm.interop.sources import SourceFolder
from nanolm.interop.weights import Weights

A, B = torch.arange(6.0).view(2, 3), torch.full((4,), 2.5, dtype=torch.bfloat16)


def open_weights(folder: Path) -> Weights:
    return Weights(SourceFolder(folder, folder, str(folder)))


def write_index(folder: Path, weight_map: Any, single: str = "model.safetensors") -> None:
    (folder / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_shards(folder: Path) -> None:
    save_file({"a": A}, folder / "model-1.safetensors")
    save_file({"b": B}, folder / "model-2.safetensors")
    write_index(folder, {"a": "model-1.safetensors", "b": "model-2.safetensors"})


def write_bin_shards(folder: Path) -> None:
    torch.save({"a": A}, folder / "pytorch_model-1.bin")
    torch.save({"b": B}, folder / "pytorch_model-2.bin")
    write_index(folder, {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}, "pytorch_model.bin")


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: save_file({"a": A, "b": B}, folder / "model.safetensors"),
        write_shards,
        lambda folder: torch.save({"a": A, "b": B}, folder / "pytorch_model.bin"),
        lambda folder: torch.save({"a": A, "b": B}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False),
        write_bin_shards,
    ],
    ids=["safetensors", "shards", "bin", "old bin", "bin shards"],
)
def test_weights_are_read_from_every_format(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    weights = open_weights(tmp_path)
    assert {name: (info.shape, info.dtype) for name, info in weights.tensors.items()} == {
        "a": ((2, 3), torch.float32),
        "b": ((4,), torch.bfloat16),
    }
    for _ in range(2):
        assert torch.equal(weights.tensor("a"), A)
        assert torch.equal(weights.tensor("b"), B)
        weights.release("a")
    assert all((tmp_path / name).exists() for name in weights.files)


def test_weights_prefer_safetensors(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    torch.save({"a": B}, tmp_path / "pytorch_model.bin")
    assert open_weights(tmp_path).files == ["model.safetensors"]


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("is_zip", [True, False])
def test_weights_execute_nothing(tmp_path: Path, is_zip: bool) -> None:
    marker, file = tmp_path / "executed", tmp_path / "pytorch_model.bin"
    torch.save({"a": A, "x": Exploit(marker)}, file, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(NanolmError, match=r"other than tensors \(posix.mkdir\) and is refused; nothing in it was exec"):
        open_weights(tmp_path)
    file.write_bytes(pickle.dumps(Exploit(marker)))
    with pytest.raises(NanolmError, match=r"pytorch_model\.bin"):
        open_weights(tmp_path)
    assert not marker.exists()


def write_bin(content: Any) -> Callable[[Path], Any]:
    return lambda folder: torch.save(content, folder / "pytorch_model.bin")


def with_header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Write a safetensors file whose header is changed."""

    def write(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({"a": A, "c": A + 1}, path)
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        encoded = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])

    return write


def write_bytes(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def link_out(folder: Path) -> None:
    save_file({"a": A}, folder.parent / "secret.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "secret.safetensors")


REFUSED: list[tuple[str, Callable[[Path], Any], str]] = [
    ("nothing", lambda folder: None, "has no weights: neither model.safetensors nor pytorch_model.bin"),
    ("fifo", lambda folder: os.mkfifo(folder / "model.safetensors"), "it is a FIFO"),
    ("folder", lambda folder: (folder / "model.safetensors").mkdir(), "model.safetensors cannot be read"),
    ("link out", link_out, "outside of"),
    ("broken link", lambda folder: (folder / "model.safetensors").symlink_to("x"), "cannot be read"),
    ("empty", write_bytes("model.safetensors", b""), "the header of model.safetensors is wrong"),
    (
        "no header",
        write_bytes("model.safetensors", b"x" * 100),
        "header of model.safetensors is wrong: it gives itself",
    ),
    ("long header", write_bytes("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), "it gives itself"),
    ("larger shape", with_header(lambda header: header["a"].update(shape=[2, 300])), "2,400 bytes is said to be in"),
    ("overlap", with_header(lambda header: header["c"].update(data_offsets=[0, 24])), "begins at byte 0"),
    ("beyond", with_header(lambda header: header["c"].update(data_offsets=[48, 72])), "begins at byte 48"),
    ("negative", with_header(lambda header: header["a"].update(data_offsets=[-24, 0])), "is said to be in"),
    ("dtype", with_header(lambda header: header["a"].update(dtype="F128")), "unknown dtype 'F128'"),
    ("removed", with_header(lambda header: header.pop("c")), "its tensors have 24 bytes, and the file has 48"),
    ("shard elsewhere", lambda folder: write_index(folder, {"a": "../a.safetensors"}), "not a .safetensors file"),
    ("absolute shard", lambda folder: write_index(folder, {"a": "/a.safetensors"}), "not a .safetensors file"),
    ("other shard", lambda folder: write_index(folder, {"a": "a.bin"}), "not a .safetensors file of the folder"),
    ("no shards", lambda folder: write_index(folder, {"a": "b.safetensors"}), "no b.safetensors, which model.safetens"),
    ("index of numbers", lambda folder: write_index(folder, {"a": 1}), "no table weight_map"),
    ("index of lists", lambda folder: write_index(folder, []), "no table weight_map"),
    ("damaged index", write_bytes("model.safetensors.index.json", b"{"), "index.json is damaged"),
    ("text", write_bytes("pytorch_model.bin", b"hello"), "pytorch_model.bin"),
    ("list", write_bin([A]), "pytorch_model.bin is not a table of tensors by name"),
    ("number", write_bin({"a": 1}), "pytorch_model.bin is not a table of tensors by name"),
    ("expanded", write_bin({"a": torch.zeros(1).expand(10**9)}), "not a plain tensor of the file's size"),
    ("sparse", write_bin({"a": torch.eye(3).to_sparse()}), "pytorch_model.bin"),
]


@pytest.mark.parametrize(("write", "problem"), [entry[1:] for entry in REFUSED], ids=[entry[0] for entry in REFUSED])
def test_weights_refuse_what_is_wrong(write: Callable[[Path], Any], problem: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder)
    with pytest.raises(NanolmError) as caught:
        open_weights(folder)
    assert problem in str(caught.value)


def test_weights_refuse_tensors_that_share_their_bytes(tmp_path: Path) -> None:
    shared = torch.ones(1000)
    write_bin({str(number): shared for number in range(100)})(tmp_path)
    with pytest.raises(NanolmError, match="more than twice its size"):
        open_weights(tmp_path)


def test_weights_refuse_a_tensor_of_two_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    save_file({"a": A, "b": B}, tmp_path / "model-2.safetensors")
    with pytest.raises(NanolmError, match=r"model-2.safetensors has tensors of another file, too: a"):
        open_weights(tmp_path)


def test_weights_report_every_damaged_shard(tmp_path: Path) -> None:
    write_shards(tmp_path)
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(NanolmError) as caught:
        open_weights(tmp_path)
    assert all(f"the header of model-{n}.safetensors is wrong" in str(caught.value) for n in (1, 2))


def test_source_folder_follows_links_of_the_hub_cache(tmp_path: Path) -> None:
    from nanolm.interop.sources import find_source

    blobs, snapshot = tmp_path / "models--gpt2" / "blobs", tmp_path / "models--gpt2" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file({"a": A}, blobs / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert torch.equal(Weights(find_source(str(snapshot), None, print)).tensor("a"), A)
