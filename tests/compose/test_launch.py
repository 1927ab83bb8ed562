from pathlib import Path

import pytest

from nanolm.compose import compose_command, compose_jobs
from nanolm.config.fields import flat
from nanolm.config.launch import Launch
from nanolm.config.yaml_io import load_yaml
from nanolm.errors import RunError, SettingsError
from tests.helpers import mostly_slow


def launch_of(*overrides: str) -> Launch:
    return compose_command(overrides).launch


def problems(*overrides: str, multirun: bool = False, config_dir: Path | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        compose_command(overrides, None if config_dir is None else str(config_dir), multirun=multirun)
    return str(caught.value)


def test_launch_options_are_not_settings() -> None:
    line = compose_command(["resume=R", "fork=true", "dry_run=true", "profile=true", "seed=3"])
    assert line.launch == Launch(resume="R", fork=True, dry_run=True, profile=True)
    assert not {key for key in flat(line.config) if key.endswith(("resume", "fork", "dry_run", "profile"))}
    assert line.given == {"seed"}
    assert compose_command(["seed=3"]).config == line.config


def test_launch_options_have_two_names() -> None:
    assert launch_of("trainer.dry_run=true", "trainer.profile=true") == launch_of("dry_run=true", "profile=true")
    assert launch_of("dry_run=true", "trainer.dry_run=false") == Launch()
    assert launch_of("++resume=a", "resume=auto") == Launch(resume="auto")


def test_launch_option_takes_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_TEST", "x")
    assert launch_of("resume=${oc.env:NANOLM_TEST}/y").resumed_path == Path("x/y")
    for value, reason in (
        ("${oc.env:NANOLM_NOPE}", "the environment variable NANOLM_NOPE is not set"),
        ("${seed}", "there is no setting 'seed'"),
        ("'${'", "its ${...} is malformed"),
    ):
        text = problems(f"resume={value}")
        assert f"resume cannot be resolved: {reason}" in text
        assert "a launch option cannot refer to a setting" in text


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("fork=outputs/gpt2", "outputs/gpt2"),
        ("fork=R/checkpoints/step-3", "R/checkpoints/step-3"),
        ("fork=a run, with #signs", "a run, with #signs"),
        ("resume=R fork=true", "R"),
        ("resume=R fork=R", "R"),
        ("fork=./true", "./true"),
    ],
)
def test_fork_names_its_parent(line: str, path: str) -> None:
    overrides = [line] if "#" in line else line.split()
    assert compose_command(overrides).launch == Launch(resume=path, fork=True)


def test_fork_and_resume_of_two_runs_are_refused() -> None:
    text = problems("fork=A", "resume=B")
    assert "fork=A and resume=B name two runs\n  where: fork, resume" in text


LAUNCH_MISTAKES = [
    ("dry_run=maybe", "dry_run is 'maybe', and must be true or false\n  where: dry_run=maybe"),
    ("fork=null", "fork is null, and must be true or false"),
    ("trainer.dry_run=", "dry_run is empty, and must be true or false\n  where: trainer.dry_run="),
    ("++profile=2.5", "profile is 2.5, and must be true or false\n  where: ++profile=2.5"),
    ("profile=3", "profile is 3, and must be true or false"),
    ("profile=[true]", "profile is [True], and must be true or false"),
    ("fork=", "fork is empty\n  where: fork=\n  hint:  name a run, as in fork=outputs/my_run"),
    ("+fork=true", "fork exists already and needs no +\n  where: +fork=true\n  hint:  fork=true"),
    ("~resume", "a launch option cannot be removed\n  where: ~resume\n  hint:  leave it out"),
    ("resume@x=auto", "resume has no package"),
    ("profile=true,false", "profile=true,false gives several values\n  where: profile"),
    ("fork=true", "fork=true starts from another run, but resume is never\n  where: fork, resume"),
    ("resum=x", "did you mean resume?"),
    ("trainer.fork=true", "did you mean fork?"),
    ("dryrun=true", "did you mean dry_run?"),
    ("trainer.dryrun=true", "did you mean trainer.dry_run?"),
    ("fork", "cannot read 'fork'"),
]


@pytest.mark.parametrize(("override", "message"), mostly_slow(LAUNCH_MISTAKES, quick=LAUNCH_MISTAKES[::4]))
def test_launch_mistake_is_explained(override: str, message: str) -> None:
    assert message in problems(override)


def test_launch_mistakes_are_reported_with_the_others() -> None:
    text = problems("profile=maybe", "dry_run=3.5", "optimizer.lr=abc", "model=gtp")
    for part in ("profile is 'maybe'", "dry_run is 3.5", "optimizer.lr is 'abc'", "no model is called 'gtp'"):
        assert part in text


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["resume=somewhere"], ["resume=somewhere resumes a single run, and -m starts several"]),
        (["fork=true", "resume=somewhere"], ["fork=true is not supported in a sweep"]),
        (["trainer.dry_run=true", "fork=true"], ["dry_run=true estimates a single run", "fork=true is not supported"]),
        (["resume=never,auto"], ["resume=never,auto gives several values"]),
    ],
)
def test_sweep_refuses_launch_options_of_one_run(overrides: list[str], messages: list[str]) -> None:
    text = problems(*overrides, "seed=1,2", multirun=True)
    for message in messages:
        assert message in text
    assert compose_command(["resume=auto", "profile=true", "seed=1,2"], multirun=True).launch.profile


def test_sweep_jobs_have_no_launch_options() -> None:
    with pytest.raises(SettingsError, match="fork=true is set for some jobs of a sweep"):
        compose_jobs([["seed=1"], ["seed=2", "fork=true"]])


def test_launch_option_in_a_file_is_refused(tmp_path: Path) -> None:
    for group, content, line, found in (
        ("experiment", "# @package _global_\nresume: auto\n", 2, "resume is a launch option"),
        ("experiment", "# @package _global_\ntrainer: {dry_run: true}\n", 2, "trainer.dry_run is a launch option"),
        ("trainer", "defaults: [default, _self_]\nprofile: true\n", 2, "trainer.profile is a launch option"),
    ):
        path = tmp_path / group / "mine.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        text = problems(f"{group}=mine", config_dir=tmp_path)
        assert f"{found}, and cannot be set in a file\n  where: {path}:{line}\n  hint:  give it on the" in text


def test_run_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("resume: never\nfork: false\ntrainer: {dry_run: false}\nseed: 1\n")
    with pytest.raises(
        RunError, match=r"has resume, fork, trainer\.dry_run from nanolm 0\.1[\s\S]*hint:  load the run"
    ):
        load_yaml(tmp_path / "config.yaml")
