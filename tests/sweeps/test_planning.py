"""The planned jobs of a sweep, and the folder of each."""

from pathlib import Path

import pytest

from nanolm.errors import PathError, RunError, SettingsError
from nanolm.sweeps.combinations import combinations
from nanolm.sweeps.planning import KEY_LENGTH, folder_name, job_folder, job_key, plan
from tests.helpers import SMALL, make_config


def test_job_key_depends_on_settings_that_affect_results() -> None:
    key = job_key(make_config(*SMALL, "optimizer.lr=1e-3", "seed=3"))
    assert len(key) == KEY_LENGTH
    assert key == job_key(make_config("seed=3", "optimizer.lr=0.001", *SMALL))
    assert key == job_key(make_config(*SMALL, "optimizer.lr=1e-3", "seed=3", "trainer.save_every=7"))
    for other in ("seed=4", "trainer.max_steps=7", "dataset=text dataset.path=other.txt", "model.dropout=0.3"):
        assert key != job_key(make_config(*SMALL, "optimizer.lr=1e-3", "seed=3", *other.split()))


def test_folder_name_is_short_and_safe_for_any_value() -> None:
    assert folder_name({"model": "gpt2", "optimizer.lr": "0.001"}, "0123456789") == (
        "model=gpt2,optimizer.lr=0.001-0123456789"
    )
    assert folder_name({}, "0123456789") == "run-0123456789"
    name = folder_name({f"key{n}": "../a b/*?" + "x" * 90 for n in range(9)}, "0123456789")
    assert len(name) <= 112
    assert "/" not in name
    assert " " not in name
    assert name.endswith("-0123456789")


def test_job_folder_is_found_by_its_key(tmp_path: Path) -> None:
    assert job_folder(tmp_path, "abc", "seed=1-abc") == tmp_path / "seed=1-abc"
    (tmp_path / "model=gpt,seed=1-abc").mkdir()
    assert job_folder(tmp_path, "abc", "seed=1-abc") == tmp_path / "model=gpt,seed=1-abc"


def test_plan_of_a_longer_command_finds_the_jobs_of_a_shorter(tmp_path: Path) -> None:
    first = plan(combinations([*SMALL, "seed=1,2", "model=gpt"]), tmp_path)
    longer = plan(combinations(["model=gpt,gpt2", "seed=2,1,3", *reversed(SMALL)]), tmp_path)
    assert len(longer) == 6
    folders = {job.label: job.run.path for job in longer}
    assert [folders[f"model=gpt, {job.label}"] for job in first] == [job.run.path for job in first]
    assert len(set(folders.values())) == 6
    assert {job.label for job in first} == {"seed=1", "seed=2"}


def test_plan_merges_jobs_with_equal_settings(tmp_path: Path) -> None:
    (job,) = plan(combinations([*SMALL, "optimizer.lr=1e-3,0.001"], variants={"a": [], "b": ["seed=1337"]}), tmp_path)
    assert job.swept["variant"] == "a"
    with pytest.raises(SettingsError, match=r"jobs differ only in trainer\.compile"):
        plan(combinations([*SMALL, "seed=1,2", "trainer.compile=true,false"]), tmp_path)


def test_plan_records_the_choices_of_each_job(tmp_path: Path) -> None:
    jobs = plan(combinations([*SMALL, "model=bigram,gpt2"]), tmp_path)
    assert [job.choices["model"] for job in jobs] == ["bigram", "gpt2"]
    assert {job.choices["logger"] for job in jobs} == {"none"}


def test_plan_names_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PathError, match=r"is not writable[\s\S]*hydra.sweep.dir="):
        plan(combinations([*SMALL, "seed=1,2"]), tmp_path / "file" / "sweep")


def test_plan_reports_each_mistake_once_and_makes_no_folder(tmp_path: Path) -> None:
    overrides = ["model=gpt,gtp2", "optimizer.lr=1e-3,fast", "size.n_heads=3,4", "size.d_model=16"]
    with pytest.raises(SettingsError) as caught:
        plan(combinations(overrides), tmp_path)
    text = str(caught.value)
    for part in (
        "no model is called 'gtp2'",
        "optimizer.lr is 'fast', and must be a number",
        "(16) is not divisible by size.n_heads (3)",
    ):
        assert text.count(part) == 1
    with pytest.raises(SettingsError, match=r"there is no setting 'optimizer\.lrr'"):
        plan(combinations([], {"optimizer.lrr": "1,2"}, {"plain": []}), tmp_path)
    with pytest.raises(SettingsError, match="resume='somewhere' is set for some jobs of a sweep"):
        plan(combinations(["seed=1,2", "resume=somewhere"]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_plan_refuses_a_job_folder_with_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (job,) = plan(combinations([*SMALL, "seed=3"]), tmp_path / "sweep")
    job.run.error.symlink_to("../elsewhere/error.txt")
    with pytest.raises(RunError, match=r"error\.txt is a symbolic link"):
        plan(combinations([*SMALL, "seed=3"]), tmp_path / "sweep")
    job.run.error.unlink()
    job.run.path.rmdir()
    job.run.path.symlink_to("../elsewhere")
    with pytest.raises(RunError, match=rf"{job.run.path.name} is a symbolic link"):
        plan(combinations([*SMALL, "seed=3"]), tmp_path / "sweep")
