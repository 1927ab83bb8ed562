import pytest

from nanolm.compose import parse
from nanolm.compose.hydra_settings import check_search_path
from nanolm.compose.override_checks import check_hydra_override


def problem(word: str, multirun: bool = False) -> str:
    (override,) = parse([word])
    return str(check_hydra_override(override, multirun) or "")


@pytest.mark.parametrize(
    ("word", "multirun", "expected"),
    [
        ("hydra.job.chdir=true", True, r"hydra.job.chdir is not supported[\s\S]*never changes the working directory"),
        ("hydra.job.chdir=false", False, "hydra.job.chdir is not supported"),
        ("hydra.mode=MULTIRUN", False, "hydra.mode is not supported[\\s\\S]*`nanolm train -m` runs a sweep"),
        ("hydra.mode=RUN", True, "hydra.mode is not supported"),
        ("hydra.run.dir=x", True, r"applies to a single run[\s\S]*hydra\.sweep\.dir=FOLDER"),
        ("hydra.sweep.dir=x", False, r"applies to sweeps only[\s\S]*hydra\.run\.dir=FOLDER"),
        ("hydra.sweep.subdir=x", True, r"is not supported[\s\S]*hydra\.sweep\.dir=FOLDER"),
        ("hydra/launcher=local", False, "applies to sweeps only"),
        ("hydra.launcher.n_jobs=2", False, "applies to sweeps only"),
        ("hydra.job.name=x", False, r"is not supported[\s\S]*hydra\.sweep\.dir=FOLDER a sweep and its Slurm jobs"),
        ("hydra.job.num=3", True, "is not supported"),
        ("hydra.output_subdir=x", False, r"is not supported[\s\S]*config\.yaml"),
        ("hydra.verbose=true", False, r"is not supported[\s\S]*train\.log"),
        ("+hydra.job.env_set.A=1", True, r"is not supported[\s\S]*NAME=value nanolm train"),
        ("hydra.run.dirr=x", False, r"is not supported[\s\S]*hydra\.run\.dir"),
        ("hydra.sweeep.dir=x", True, "did you mean hydra.sweep.dir"),
        ("hydra={run:{dir:x}}", False, "hydra is not supported"),
        ("+hydra/callbacks=x", True, r"hydra/callbacks is not supported[\s\S]*plugins=\[my_module\]"),
        ("hydra/job_logging=default", False, "hydra/job_logging is not supported"),
        ("hydra/launcher=joblib", True, r"was replaced[\s\S]*hydra/launcher=local"),
        ("hydra.sweeper.max_batch_size=2", True, r"was replaced[\s\S]*hydra\.sweeper\.max_running"),
        ("hydra/launcher=submitit_slurm", True, r"was replaced[\s\S]*hydra/launcher=slurm, with time_limit"),
        ("hydra/launcher=submitit_local", True, r"was replaced[\s\S]*hydra\.launcher\.executor=local"),
        ("~hydra.launcher.n_jobs", True, "cannot be removed"),
        ("hydra.sweeper.params={seed:1}", True, r"cannot be set on the command line[\s\S]*sweep=NAME"),
    ],
)
def test_an_unsupported_hydra_setting_is_refused(word: str, multirun: bool, expected: str) -> None:
    import re

    assert re.search(expected, problem(word, multirun)), problem(word, multirun)


@pytest.mark.parametrize(
    ("word", "multirun"),
    [
        ("hydra.run.dir=x", False),
        ("hydra.sweep.dir=x", True),
        ("hydra.searchpath=[x]", False),
        ("hydra/launcher=local", True),
        ("hydra.launcher.n_jobs=2", True),
        ("+hydra.launcher.additional_parameters.x=2", True),
        ("hydra/sweeper=optuna", True),
        ("hydra.sweeper.n_trials=2", True),
        ("hydration=1", False),
    ],
)
def test_a_supported_hydra_setting_is_accepted(word: str, multirun: bool) -> None:
    assert not problem(word, multirun)


def test_a_search_path_names_folders() -> None:
    assert not check_search_path(["hydra.searchpath=[file:///mine,mine]", "dataset.path=s3://x"])
    for word in (
        "hydra.searchpath=[mine,'pkg://evil']",
        r"hydra.searchpath=[pkg\://evil]",
        "hydra.searchpath=pkg://evil",
    ):
        (found,) = check_search_path([word])
        assert "pkg://evil is not a folder" in str(found)
