"""Folders of Hugging Face that read files elsewhere, or expand without bound."""

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import pytest

from nanolm.config.dataset import HuggingFaceConfig
from nanolm.data import corpus
from nanolm.errors import DataError
from tests.helpers import full_text

datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one row, next to a file with a secret."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.jsonl").write_text('{"text": "a secret"}\n')
    (folder / "train.jsonl").write_text('{"text": "a row"}\n')
    return folder


def card(path: str) -> str:
    files = f"  data_files:\n  - split: train\n    path: {path}\n"
    return f"---\ntitle: a---b\ndate: 2024-01-01\nconfigs:\n- config_name: default\n{files}---\n"


def refused(folder: Path, match: str) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        corpus.load(HuggingFaceConfig(path=str(folder)))
    assert str(folder) in caught.value.where
    assert caught.value.hint
    return caught.value


def test_card_may_name_files_of_the_folder(folder: Path) -> None:
    (folder / "part").mkdir()
    (folder / "part" / "more.jsonl").write_text('{"text": "another row"}\n')
    (folder / "README.md").write_text(card("part/*.jsonl"))
    assert full_text(HuggingFaceConfig(path=str(folder))) == "another row"


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "path",
    [
        "../secret.jsonl",
        "part/../../secret.jsonl",
        "{folder}/../secret.jsonl",
        "/etc/*",
        "~/secret",
        "'..\\secret'",
        "http://127.0.0.1:9/secret.jsonl",
        "zip://secret.jsonl::train.zip",
        "hf://datasets/a/b/c.jsonl",
        "file://secret",
    ],
)
def test_card_may_not_name_files_elsewhere(name: str, path: str, folder: Path) -> None:
    text = card(path.format(folder=folder))
    (folder / name).write_text(text if name == "README.md" else text.strip("-\n"))
    refused(folder, "names a file outside of the folder")


def test_card_is_plain_yaml_of_the_folder(folder: Path) -> None:
    path = folder / "README.md"
    for content in (
        "---\na: &a [1]\nb: [*a, *a]\n---\n",
        f"---\na: {'[' * 5000}\n---\n",
        "---\n!!python/name:os\n---\n",
    ):
        path.write_text(content)
        refused(folder, r"README\.md is refused")
    path.unlink()
    path.symlink_to("../secret.jsonl")
    refused(folder, "outside")


def test_links_out_of_the_folder_are_refused(folder: Path) -> None:
    (folder / "train-2.jsonl").symlink_to("train.jsonl")
    assert corpus.load(HuggingFaceConfig(path=str(folder))).n_documents == {"train": 2}
    (folder / "train-2.jsonl").unlink()
    (folder / "train-2.jsonl").symlink_to("../secret.jsonl")
    refused(folder, "names a file outside of its folder")
    (folder / "train-2.jsonl").unlink()
    (folder / "inner").symlink_to("..")
    assert full_text(HuggingFaceConfig(path=str(folder))) == "a row"


def test_archives_and_other_formats_are_refused(folder: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("train.jsonl", '{"text": "a row"}\n')
    (folder / "train.jsonl").unlink()
    (folder / "train.zip").write_bytes(content.getvalue())
    refused(folder, "a file of another format")
    (folder / "train.zip").unlink()
    (folder / "metadata.jsonl").write_text('{"file_name": "../secret.png", "text": "a row"}\n')
    (folder / "image.png").write_bytes(b"")
    refused(folder, r"module 'imagefolder'|cannot be read|another format")


@pytest.mark.parametrize(("suffix", "module"), [("gz", gzip), ("bz2", bz2), ("xz", lzma)])
def test_compressed_files_are_limited(
    suffix: str, module: object, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "train.jsonl").unlink()
    path = folder / f"train.jsonl.{suffix}"
    path.write_bytes(module.compress(b'{"text": "a row"}\n' * 3))  # type: ignore[attr-defined]
    assert corpus.load(HuggingFaceConfig(path=str(folder))).n_documents == {"train": 3}
    monkeypatch.setattr("nanolm.data.corpus.huggingface.FREE_BYTES", 100_000)
    path.write_bytes(module.compress(b'{"text": "' + b"a" * 10_000_000 + b'"}\n'))  # type: ignore[attr-defined]
    refused(folder, "expands to more than 100 times its size")
    path.write_bytes(path.read_bytes()[:-20])
    refused(folder, "expands to more than 100 times its size|cannot be decompressed")


def test_parquet_is_limited_and_opens_no_files(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (folder / "train.jsonl").unlink()
    rows = {"text": ["a row"] * 3, "image": [{"bytes": None, "path": str(tmp_path / "secret.jsonl")}] * 3}
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    assert full_text(HuggingFaceConfig(path=str(folder))) == "a row\na row\na row"
    with pytest.raises(DataError, match=r"'image' holds Image, not text[\s\S]*one of: text"):
        corpus.load(HuggingFaceConfig(path=str(folder), field="image"))
    monkeypatch.setattr("nanolm.data.corpus.huggingface.FREE_BYTES", 100_000)
    datasets.Dataset.from_dict({"text": ["a" * 100_000] * 1000}).to_parquet(folder / "train.parquet")
    refused(folder, "expands to more than 100 times its size")
