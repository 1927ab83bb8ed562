"""No YAML file and no override makes Hydra execute code, such as the loading of a pickle."""

import os
import pickle
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nanolm.cli import main as cli
from nanolm.compose import CONFIG_NAME
from nanolm.compose.hydra_app import create_hydra
from nanolm.config.yaml_io import save_yaml
from nanolm.errors import SettingsError
from tests.helpers import make_config

LOADS = "{_target_: torch.load, f: evil.pkl, weights_only: false}"
LOGGING = "{version: 1, root: {handlers: [x]}, handlers: {x: {'()': torch.load, f: evil.pkl, weights_only: false}}}"
LAUNCHERS = "_target_: hydra_plugins.nanolm_launchers.LocalLauncher\n"
EXPERIMENT = "# @package _global_\n"

# Way in: files of the user's folder, words of the command line, and the setting that is named.
WAYS: dict[str, tuple[dict[str, str], list[str], str]] = {
    "callback": ({"experiment/x": f"hydra: {{callbacks: {{x: {LOADS}}}}}"}, ["experiment=x"], "hydra.callbacks"),
    "callback_group": (
        {"experiment/x": "defaults: [override /hydra/callbacks: y]", "hydra/callbacks/y": f"y: {LOADS}"},
        ["experiment=x"],
        "hydra.callbacks",
    ),
    "callback_package": ({"size/x": f"# @package hydra.callbacks\nx: {LOADS}"}, ["size=x"], "hydra.callbacks"),
    "job_logging": ({"experiment/x": f"hydra: {{job_logging: {LOGGING}}}"}, ["experiment=x"], "hydra.job_logging"),
    "hydra_logging": ({"sweep/x": f"hydra: {{hydra_logging: {LOGGING}}}"}, ["-m", "sweep=x"], "hydra.hydra_logging"),
    "hydra_itself": ({"hydra/config": f"callbacks: {{x: {LOADS}}}"}, [], "hydra"),
    "environment": ({"experiment/x": "hydra: {job: {env_set: {CC: ./x}}}"}, ["experiment=x"], "hydra.job.env_set"),
    "variant": (
        {"sweep/x": f'hydra: {{sweeper: {{variants: {{a: ["+hydra.job_logging={LOGGING}"]}}}}}}'.replace("'()'", "c")},
        ["-m", "sweep=x", "model=bigram"],
        "hydra.job_logging",
    ),
    "variant_package": (
        {
            "sweep/x": "hydra: {sweeper: {variants: {a: [size=y]}}}",
            "size/y": f"# @package hydra\njob_logging: {LOGGING}",
        },
        ["-m", "sweep=x", "model=bigram"],
        "hydra.job_logging",
    ),
    "params_of_a_sweeper": (
        {"sweep/x": f"defaults: [override /hydra/sweeper: optuna]\nhydra: {{sweeper: {{params: {{x: {LOADS}}}}}}}"},
        ["-m", "sweep=x"],
        "hydra.sweeper.params.x._target_",
    ),
    "launcher": ({"hydra/launcher/x": LOADS}, ["-m", "hydra/launcher=x"], "hydra.launcher._target_"),
    "launcher_setting": (
        {"hydra/launcher/x": LAUNCHERS + f"gpus: {LOADS}"},
        ["-m", "hydra/launcher=x"],
        "hydra.launcher.gpus._target_",
    ),
    "launcher_resolver": (
        {"hydra/launcher/x": LAUNCHERS + f'gpus: ${{oc.create:"{LOADS}"}}'.replace("gpus: $", "gpus: '$") + "'"},
        ["-m", "hydra/launcher=x"],
        "hydra.launcher.gpus",
    ),
    "launcher_interpolation": (
        {"hydra/launcher/x": LAUNCHERS + "gpus: ${hydra:runtime}"},
        ["-m", "hydra/launcher=x"],
        "hydra.launcher.gpus",
    ),
    "slurm_shell": (
        {"experiment/x": "defaults: [override /hydra/launcher: slurm]\nhydra: {launcher: {setup: [./x]}}"},
        ["-m", "experiment=x"],
        "hydra.launcher.setup",
    ),
    "slurm_line_break": (
        {"experiment/x": 'defaults: [override /hydra/launcher: slurm]\nhydra: {launcher: {qos: "a\\n./x"}}'},
        ["-m", "experiment=x"],
        "hydra.launcher.qos",
    ),
    "overrides": (
        {"experiment/x": "hydra: {overrides: {hydra: ['hydra.searchpath=[pkg://evil]']}}"},
        ["experiment=x"],
        "hydra.overrides",
    ),
    "typed": ({}, [f"+hydra.callbacks.x={LOADS}"], "hydra.callbacks.x"),
    "printed": ({"experiment/x": f"hydra: {{callbacks: {{x: {LOADS}}}}}"}, ["--cfg", "job", "experiment=x"], "hydra"),
    "pickled_run": ({}, ["--experimental-rerun", "evil.pkl"], "--experimental-rerun"),
    "primary_folder": ({"train": f"hydra: {{callbacks: {{x: {LOADS}}}}}"}, ["--config-path", "mine"], "--config-path"),
    "primary_name": ({"x": f"hydra: {{callbacks: {{x: {LOADS}}}}}"}, ["--config-name", "x"], "--config-name"),
}


class LeavesAMark:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("mark",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a pickle, a module and a program that leave a mark when they are executed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(LeavesAMark()))
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text("import os\nos.mkdir('mark')\n")
    (tmp_path / "mine").mkdir()
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / "mine" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if "@package" in text or name.startswith("hydra/") else EXPERIMENT + text)


@pytest.mark.parametrize("way", WAYS)
def test_a_configuration_executes_nothing(folder: Path, way: str) -> None:
    files, words, named = WAYS[way]
    write(folder, files)
    with pytest.raises(SettingsError) as caught:
        cli.run(["train", "--config-dir", "mine", *words, "dataset=text", "dataset.path=none.txt"])
    assert named in str(caught.value)
    assert not (folder / "mark").exists()


def test_the_file_of_an_unsupported_setting_is_named(folder: Path) -> None:
    write(folder, WAYS["callback"][0])
    with pytest.raises(SettingsError, match=r"hydra\.callbacks is not supported\n  where: mine/experiment/x\.yaml\n"):
        cli.run(["train", "--config-dir", "mine", "experiment=x"])


def test_the_file_comes_before_the_option_that_it_changes(folder: Path) -> None:
    write(folder, {"experiment/x": "hydra: {launcher: {additional_parameters: {wrap: ./x}}}"})
    with pytest.raises(SettingsError) as caught:
        cli.run(["train", "-m", "--config-dir", "mine", "experiment=x", "hydra/launcher=slurm", "seed=1,2"])
    assert caught.value.where == "mine/experiment/x.yaml"
    assert caught.value.hint == "hydra.launcher.additional_parameters=VALUE on the command line"
    with pytest.raises(SettingsError) as caught:
        cli.run(["train", "-m", "hydra.launcher._target_=os.system", "hydra/launcher=local", "seed=1,2"])
    assert caught.value.where == "hydra.launcher._target_=os.system"


def test_a_job_in_another_process_checks_what_it_composes(folder: Path) -> None:
    """A launcher pickles the config loader; files may have changed when a job begins."""
    hydra = create_hydra(str(folder / "mine"))
    write(folder, {"experiment/x": "seed: 1"})
    master = hydra.compose_config(CONFIG_NAME, ["experiment=x"], run_mode=None)
    loader = pickle.loads(pickle.dumps(hydra.config_loader))  # noqa: S301
    assert loader.load_sweep_config(master, ["experiment=x", "hydra.sweep.subdir=a"]).seed == 1
    write(folder, WAYS["job_logging"][0])
    with pytest.raises(SettingsError, match=r"hydra\.job_logging is not supported"):
        loader.load_sweep_config(master, ["experiment=x", "hydra.sweep.subdir=a"])


def test_cfg_prints_what_a_resumed_line_composes_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = make_config("dataset=text", "dataset.path=a.txt", "model=bigram")
    (tmp_path / "config.yaml").write_text(save_yaml(saved))
    cli.run(["train", "--cfg", "job", f"resume={tmp_path}", "dataset.path=moved.txt", "seed=${trainer.max_steps}"])
    printed = OmegaConf.create(capsys.readouterr().out)
    assert (printed.dataset.path, printed.model.name, printed.seed) == ("moved.txt", "bigram", 1000)
    cli.run(["train", "--cfg", "all", "-p", "dataset", "--resolve", f"resume={tmp_path}"])
    assert capsys.readouterr().out.startswith("# @package dataset\nname: text\n")
    with pytest.raises(SettingsError, match="hint:  --cfg hydra"):
        cli.run(["train", "--cfg", "job", "-p", "hydra.run"])
