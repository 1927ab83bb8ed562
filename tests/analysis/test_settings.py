import json
from pathlib import Path
from typing import Any

from nanolm.analysis import collection
from nanolm.analysis.settings import differing_settings, varying_settings


def make_run(path: Path, settings: str = "seed: 1\n", **summary: Any) -> Path:
    """The files of a run that ended."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(settings)
    (path / "summary.json").write_text(json.dumps({"status": "completed", **summary}))
    return path


def several(tmp_path: Path, *settings: str, choices: list[dict[str, str]] | None = None) -> list[collection.Run]:
    chosen = choices or [{}] * len(settings)
    for number, (text, choice) in enumerate(zip(settings, chosen, strict=True)):
        make_run(tmp_path / f"run{number}", text, choices=choice)
    return collection.find([tmp_path])


def test_differing_settings_lists_values_of_each_run(tmp_path: Path) -> None:
    runs = several(
        tmp_path,
        "optimizer: {lr: 0.1, name: adamw}\nmask: {pattern: null}\ntrainer: {log_every: 1}\nseed: 1\n",
        "optimizer: {lr: 0.2, name: adamw}\nmask: {pattern: [a, b]}\ntrainer: {log_every: 2}\nseed: 1\n",
        "optimizer: {lr: 0.2, name: adamw, beta: 0.9}\nmask: {pattern: null}\nlogger: {name: wandb}\nseed: 1\n",
    )
    assert differing_settings(runs) == {
        "optimizer.lr": [0.1, 0.2, 0.2],
        "mask.pattern": [None, ["a", "b"], None],
        "optimizer.beta": [None, None, 0.9],
    }


def test_runtime_settings_are_listed_if_nothing_else_differs(tmp_path: Path) -> None:
    runs = several(tmp_path, "trainer: {log_every: 1}\nseed: 1\n", "trainer: {log_every: 2}\nseed: 1\n")
    assert differing_settings(runs) == {"trainer.log_every": [1, 2]}
    assert differing_settings(runs[:1]) == {}


def test_dataset_path_is_listed_if_texts_differ(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "dataset: {path: a.txt}\nseed: 1\n", corpus="1")
    make_run(tmp_path / "b", "dataset: {path: b.txt}\nseed: 2\n", corpus="1")
    make_run(tmp_path / "c", "dataset: {path: c.txt}\nseed: 2\n", corpus="2")
    a, b, c = collection.find([tmp_path])
    assert differing_settings([a, b]) == {"seed": [1, 2]}
    assert differing_settings([b, c]) == {"dataset.path": ["b.txt", "c.txt"]}


def test_choice_replaces_the_settings_it_determines(tmp_path: Path) -> None:
    runs = several(
        tmp_path,
        "model: {name: gpt, norm: rms, dropout: 0.0}\nseed: 1\n",
        "model: {name: gpt, norm: rms, dropout: 0.1}\nseed: 2\n",
        "model: {name: gpt, norm: layer, dropout: 0.0}\nseed: 1\n",
        choices=[{"model": "gpt"}, {"model": "gpt"}, {"model": "gpt2"}],
    )
    assert varying_settings(runs) == {
        "model": ["gpt", "gpt", "gpt2"],
        "model.dropout": [0.0, 0.1, 0.0],
        "seed": [1, 2, 1],
    }
    assert varying_settings(runs[:2]) == {"model.dropout": [0.0, 0.1], "seed": [1, 2]}


def test_experiment_replaces_settings_of_every_group(tmp_path: Path) -> None:
    runs = several(
        tmp_path,
        "size: {d_model: 8}\noptimizer: {lr: 0.1}\nseed: 1\n",
        "size: {d_model: 8}\noptimizer: {lr: 0.1}\nseed: 2\n",
        "size: {d_model: 16}\noptimizer: {lr: 0.2}\nseed: 1\n",
        choices=[{"experiment": "a"}, {"experiment": "a"}, {"experiment": "b"}],
    )
    assert varying_settings(runs) == {"experiment": ["a", "a", "b"], "seed": [1, 2, 1]}
