"""The YAML files of a user's folder: what is wrong in them has a file and a line."""

from pathlib import Path

import pytest

from nanolm.compose import compose_command, parse
from nanolm.compose.yaml_files import YamlFiles
from nanolm.errors import SettingsError

GLOBAL = "# @package _global_\n"
ADAMW = "defaults:\n  - adamw\n  - _self_\n"


def written(folder: Path, group: str, content: str | bytes) -> Path:
    path = folder / group / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("lr: [1\n", ":2", "the file is not YAML: expected"),
        ("- a\n", ":1", "the file contains a list"),
        ("# nothing\n", "", "the file is empty"),
        (b"\x00\x01\xff", ":1", "the file is not UTF-8"),
        (b"a: 1\nb: caf\xe9\n", ":2", "it has the byte 0xe9"),
        ("lr: 1\nlr: 2\n", ":2", "duplicate key lr"),
        ("a\x07: 1\n", ":1", "the file is not YAML"),
        ("defaults: adamw\n", ":1", "must be a list"),
        ("defaults:\n  - mine\n", "", "defaults lists form a cycle: optimizer/mine -> optimizer/mine"),
    ],
)
def test_a_file_that_is_not_well_formed_is_named(content: str | bytes, line: str, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path, "optimizer", content)
    with pytest.raises(SettingsError) as caught:
        YamlFiles(parse(["optimizer=mine"]), str(tmp_path))
    assert reason in str(caught.value)
    assert f"where: {path}{line}\n" in f"{caught.value}\n"


def test_a_file_cannot_choose_logging_of_hydra(tmp_path: Path) -> None:
    path = written(tmp_path, "experiment", GLOBAL + "defaults:\n  - override /hydra/job_logging: colorlog\n")
    with pytest.raises(SettingsError, match=r"hydra\.job_logging is not supported") as caught:
        compose_command(["experiment=mine"], str(tmp_path))
    assert caught.value.where == f"{path}:3"
    written(tmp_path, "experiment", GLOBAL + "defaults:\n  - override /hydra/launcher: local\n")
    YamlFiles(parse(["experiment=mine"]), str(tmp_path))


@pytest.mark.parametrize("name", ["config", "launcher/basic", "sweeper/grid"])
def test_a_file_cannot_replace_one_of_hydra(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hydra" / f"{name}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("callbacks: {x: {_target_: torch.load}}\n")
    path.with_name("mine.yaml").write_text("a: 1\n")
    with pytest.raises(SettingsError, match=f"would replace Hydra's own hydra/{name}") as caught:
        compose_command([], str(tmp_path))
    assert caught.value.where == str(path)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "optimizer" / "mine.yaml").mkdir(parents=True)
    with pytest.raises(SettingsError, match="the file cannot be read: Is a directory"):
        YamlFiles(parse(["optimizer=mine"]), str(tmp_path))


@pytest.mark.parametrize(
    ("group", "content", "line", "message"),
    [
        ("optimizer", ADAMW + "lrr: 1\n", ":4", "there is no setting 'optimizer.lrr'"),
        ("optimizer", ADAMW + "lr: abc\n", ":4", "optimizer.lr is 'abc', and must be a number"),
        ("optimizer", "lr: 1\n", "", "the file does not say which optimizer it configures"),
        ("optimizer", ADAMW + "lr: ${oc.env:NO_SUCH}\n", ":4 (optimizer.lr=${oc.env:NO_SUCH})", "NO_SUCH is not set"),
        ("optimizer", "defaults:\n  - adamx\n", ":2", "no optimizer is called 'adamx'"),
        ("experiment", "optimizer:\n  lr: 1\n", "", "its first line must be `# @package _global_`"),
        ("experiment", GLOBAL + "trainer:\n  max_step: 3\n", ":3", "did you mean trainer.max_steps?"),
        ("experiment", GLOBAL + "defaults:\n  - override /model: gtp\n", ":3", "no model is called 'gtp'"),
        ("experiment", GLOBAL + "defaults:\n  - override /modle: gpt\n", ":3", "there is no group 'modle'"),
        ("experiment", GLOBAL + "defaults:\n  - /model: gpt2\n", ":3", "write `- override /model: gpt2`"),
        ("experiment", GLOBAL + "plugins: my_masks\n", ":2", "write plugins: [my_masks]"),
    ],
)
def test_a_mistake_in_a_file_has_its_line(group: str, content: str, line: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, group, content)
    with pytest.raises(SettingsError) as caught:
        compose_command([f"{group}=mine", "seed=3"], str(tmp_path))
    assert message in str(caught.value)
    assert f"where: {path}{line}\n" in f"{caught.value}\n"
    assert str(caught.value).count("where:") == 1


def test_all_mistakes_in_a_file_have_their_lines(tmp_path: Path) -> None:
    defaults = "defaults:\n  - override /dataset: text\n"
    values = "optimizer: 3\nsize: null\ntokenizer: [1]\ntrainer: {max_steps: 1e3}\ndataset: {path: x, val_path: [1]}\n"
    path = written(tmp_path, "experiment", GLOBAL + defaults + values)
    with pytest.raises(SettingsError) as caught:
        compose_command(["experiment=mine"], str(tmp_path))
    for line, found in {
        4: "optimizer is 3, and must be settings, as key: value",
        5: "size is null, and must be settings, as key: value",
        6: "tokenizer is [1], and must be settings, as key: value",
        7: "trainer.max_steps is 1000.0, and must be a whole number or null",
        8: "dataset.val_path is [1], and must be a string or null",
    }.items():
        assert f"{found}\n  where: {path}:{line}\n" in f"{caught.value}\n"
    assert "dataset.path" not in str(caught.value)
    path.write_text(GLOBAL + "defaults:\n  - optimizer: lion\n")
    with pytest.raises(SettingsError, match="write `- override /optimizer: lion`"):
        compose_command(["experiment=mine"], str(tmp_path))
