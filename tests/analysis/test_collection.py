import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanolm.analysis import collection
from nanolm.config.fields import flat
from nanolm.errors import Problems, RunError
from nanolm.plain_yaml import load_plain_yaml
from nanolm.runs.directory import RunDirectory
from nanolm.training.trainer import train
from tests.helpers import SMALL, make_config


def make_run(path: Path, settings: str = "seed: 1\n", **summary: Any) -> Path:
    """The files of a run that ended."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(settings)
    (path / "summary.json").write_text(json.dumps({"status": "completed", **summary}))
    return path


def names(*paths: Path) -> list[str]:
    return [run.name for run in collection.find(paths)]


def test_find_lists_runs_in_natural_order(tmp_path: Path) -> None:
    for name in ("sweep/lr=10", "sweep/lr=2", "single", "sweep/lr=2/wandb/offline/files"):
        make_run(tmp_path / name)
    (tmp_path / "sweep" / "config.yaml").write_text("not: a run\n")
    (tmp_path / "sweep" / ".lock").touch()
    make_run(tmp_path / ".hidden" / "run")
    assert names(tmp_path) == ["single", "lr=2", "lr=10"]
    assert names(tmp_path / "sweep", tmp_path) == ["lr=2", "lr=10", "single"]


def with_checkpoint(path: Path, step: int, settings: dict[str, Any]) -> Path:
    folder = path / "checkpoints" / f"step-{step:08}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"settings": settings}))
    return path


def test_edited_config_is_noted(tmp_path: Path) -> None:
    trained = {"optimizer.lr": 0.002, "trainer.max_steps": 4, "trainer.eval_every": 2, "model.name": "gpt"}
    written = "optimizer: {lr: %s}\ntrainer: {max_steps: 8, eval_every: 4}\nmodel: {name: %s}\n"
    edited = make_run(tmp_path / "edited", written % (0.1, "bigram"))
    with_checkpoint(with_checkpoint(edited, 2, {"seed": 1}), 10, trained)
    with_checkpoint(make_run(tmp_path / "kept", written % ("2e-3", "gpt")), 4, trained)
    plateau = with_checkpoint(make_run(tmp_path / "plateau", written % (0.002, "gpt")), 4, trained)
    (plateau / "checkpoints/step-00000004/manifest.json").write_text(
        json.dumps({"settings": trained | {"scheduler.name": "plateau"}})
    )
    with_checkpoint(make_run(tmp_path / "unreadable"), 4, {})
    (tmp_path / "unreadable/checkpoints/step-00000004/manifest.json").write_text("[")
    notes = {run.name: run.notes for run in collection.find([tmp_path])}
    assert notes == {
        "edited": (
            "config.yaml has changed since the run was trained: optimizer.lr: 0.002 -> 0.1; model.name: gpt -> bigram",
        ),
        "kept": (),
        "plateau": ("config.yaml has changed since the run was trained: trainer.eval_every: 2 -> 4",),
        "unreadable": (),
    }
    assert {run.status for run in collection.find([tmp_path])} == {"completed"}


def test_run_names_are_shortest_unique_endings(tmp_path: Path) -> None:
    for name in ("a/seed=1", "a/seed=2", "b/seed=1", "c"):
        make_run(tmp_path / name)
    assert names(tmp_path) == ["a/seed=1", "seed=2", "b/seed=1", "c"]


def test_run_in_the_current_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_run(tmp_path / "here"))
    assert names(Path()) == ["here"]


def test_find_reports_all_folders_without_runs(tmp_path: Path) -> None:
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(Problems) as caught:
        collection.find([tmp_path / "empty", tmp_path / "nowhere", make_run(tmp_path / "run")])
    assert f"there is no run in {tmp_path / 'empty'}" in str(caught.value)
    assert f"there is no folder {tmp_path / 'nowhere'}" in str(caught.value)


def test_find_explains_partial_runs(tmp_path: Path) -> None:
    run = with_checkpoint(make_run(tmp_path / "run"), 4, {})
    with pytest.raises(RunError, match=f"not a run directory, but a part of one[\\s\\S]*the run itself: {run}"):
        collection.find([run / "checkpoints"])
    (run / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"config\.yaml is missing from"):
        collection.find([run])


def test_real_run_is_read_as_written(tmp_path: Path, small_text: Path) -> None:
    line = ("dataset=text", f"dataset.path={small_text}", "tokenizer=char", "model=gpt", *SMALL)
    directory = RunDirectory(tmp_path / "here" / "run")
    with directory.claim():
        config = make_config(*line, "trainer.max_steps=4", "trainer.eval_every=2")
        train(config, directory, choices={"model": "gpt"})
    (run,) = collection.find([tmp_path / "here"])
    assert run.settings == flat(config)
    assert run.settings["size.d_model"] == 16
    assert run.settings["optimizer.eps"] == pytest.approx(1e-8)
    assert run.summary == directory.read_summary()
    assert (run.status, run.faults, run.summary.choices["model"]) == ("completed", (), "gpt")


def test_damaged_runs_keep_their_faults(tmp_path: Path) -> None:
    make_run(tmp_path / "config", settings="seed: [1\n")
    make_run(tmp_path / "no_table", settings="just words\n")
    (make_run(tmp_path / "summary") / "summary.json").write_text('{"status": "comp')
    started = make_run(tmp_path / "unstarted")
    (started / "summary.json").unlink()
    (started / "tokenizer.json").write_text("{}")
    found = {run.name: run for run in collection.find([tmp_path])}
    assert {name: run.status for name, run in found.items()} == {
        "config": "damaged",
        "no_table": "damaged",
        "summary": "damaged",
        "unstarted": "no summary",
    }
    assert "config.yaml is damaged" in found["config"].faults[0]
    assert found["no_table"].faults == ("config.yaml holds no settings",)
    assert "summary.json is damaged" in found["summary"].faults[0]


def test_yaml_tags_are_not_executed(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", settings=f"seed: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]\n")
    (run,) = collection.find([path])
    assert run.status == "damaged"
    assert not (tmp_path / "made").exists()


def test_running_without_a_writer_is_cut_off(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    (path / "summary.json").write_text('{"status": "running"}')
    assert collection.find([path])[0].status == "unfinished"
    code = (
        "import sys\nfrom nanolm.runs.directory import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).claim():\n print('claimed', flush=True)\n sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "claimed\n"
        assert collection.find([path])[0].status == "running"
        assert f"process {writer.pid}" in (path / ".lock").read_text()
        writer.kill()
    assert collection.find([path])[0].status == "unfinished"
    with RunDirectory(path).claim():
        assert RunDirectory(path).is_claimed()
    assert not RunDirectory(path).is_claimed()


def test_collection_imports_neither_torch_nor_omegaconf() -> None:
    code = "import sys, nanolm.analysis.collection\n"
    code += "print([m for m in ('torch', 'omegaconf', 'hydra') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cyclic_links_are_followed_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "run")
    for name in ("one", "two", "three"):
        (tmp_path / "a" / name).symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / name).symlink_to(tmp_path / "a", target_is_directory=True)
    assert [run.name for run in collection.find([tmp_path])] == ["run"]


@pytest.mark.parametrize(
    "text",
    [
        "a:\n  b: 1\n  c:\n    d: x\n    e: [1, 2]\nseed: 3\n",
        "a:\n  b: first\n    second\nf: long\n  text\n",
        "a:\n  b: |\n    one\n    two\n\nf: 'x'\n",
        "# note\na:\n  # more\n  b: 1\n",
        "a:\n    b: 1\n    c: 2\n",
        "a:\n  - 1\n  - 2\nf:\n- x\n- y\n",
        "a:\n  b: 1\nf: 2\na:\n  c: 3\n",
        "a:\n  b:\n    x: 1\n  b:\n    y: 2\n",
        "{a: {b: 1}, f: 2}\n",
        "a: {b: 1,\n  c: 2}\nf: caf\u00e9\n",
        "a:\r\n  b: 1\r\nf: 2\r\n",
        "---\na:\n  b: 1\n",
        'a: 1\na.b: 2\n"f g": 3\n',
        "  a: 1\n  f: 2\n",
        "a: 1: 2\n",
        "a: [1,\nf: 2\n",
        "a:\n  b: &x 1\n  c: *x\n",
        "a:\n  b: 'one\n  f: two'\n",
        "a:\nf: 1\n",
    ],
)
def test_settings_by_parts_equal_those_of_the_whole(text: str, tmp_path: Path) -> None:
    def read(content: str) -> object:
        path = tmp_path / "config.yaml"
        path.write_bytes(content.encode())
        try:
            return list(collection.plain_settings(path).items())
        except RunError as error:
            return error.found.partition(" (line")[0]

    # A comment with another letter, so that the text is parsed as a whole.
    whole = read(text.rstrip("\r\n") + "\n# \u00e9\n")
    assert read(text) == read(text) == whole


def test_sweep_parses_common_settings_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    monkeypatch.setattr(collection, "load_plain_yaml", lambda text: parsed.append(text) or load_plain_yaml(text))
    for number in range(20):
        make_run(tmp_path / f"run{number}", f"group:\n  common: 1\n  lr: 0.{number + 1}\nother:\n  common: 2\n")
    runs = collection.find([tmp_path])
    assert [run.settings["group.lr"] for run in runs] == [float(f"0.{number + 1}") for number in range(20)]
    assert sum(b"lr:" in text for text in parsed) == 20
    assert sum(b"common" in text for text in parsed) == 2


def test_damaged_row_makes_the_run_damaged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "split": "train", "loss": "low"}\n')
    (found,) = collection.find([run])
    assert found.status == "damaged"
    assert found.faults == ("line 1 of metrics.jsonl is damaged: loss is 'low', and must be a number",)
