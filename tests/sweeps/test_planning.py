"""Which jobs a line has, and the folder that each of them gets."""

from pathlib import Path

import pytest

from nanolm.errors import PathError, RunError, SettingsError
from nanolm.sweeps.planning import KEY_LENGTH, combinations, folder_of, key_of, name_of, plan
from tests.helpers import SMALL, make_config


def words_of(*line: str, **more: dict[str, str] | dict[str, list[str]]) -> list[tuple[str, ...]]:
    return [combination.words for combination in combinations(line, **more)]  # type: ignore[arg-type]


def test_every_combination_once() -> None:
    found = combinations(["model=gpt,gpt2", "optimizer.lr=1e-3,0.003", "size=tiny"])
    assert [combination.words for combination in found] == [
        ("model=gpt", "optimizer.lr=0.001", "size=tiny"),
        ("model=gpt", "optimizer.lr=0.003", "size=tiny"),
        ("model=gpt2", "optimizer.lr=0.001", "size=tiny"),
        ("model=gpt2", "optimizer.lr=0.003", "size=tiny"),
    ]
    assert found[0].swept == {"model": "gpt", "optimizer.lr": "0.001"}


def test_the_line_goes_before_a_variant_and_a_variant_before_the_params() -> None:
    params = {"seed": "1,2", "optimizer.lr": "1e-3,1e-2"}
    variants = {"plain": [], "long": ["size.context_length=32", "optimizer.lr=0.1"]}
    found = combinations(["seed=7", "model=gpt"], params, variants)
    assert [combination.words for combination in found] == [
        ("seed=7", "optimizer.lr=0.001", "model=gpt"),
        ("seed=7", "optimizer.lr=0.01", "model=gpt"),
        ("seed=7", "optimizer.lr=0.1", "size.context_length=32", "model=gpt"),
    ]
    assert [combination.swept for combination in found] == [
        {"variant": "plain", "optimizer.lr": "0.001"},
        {"variant": "plain", "optimizer.lr": "0.01"},
        {"variant": "long"},
    ]


def test_values_are_choices_and_ranges_of_whole_numbers() -> None:
    assert words_of("seed=range(1,4)") == [("seed=1",), ("seed=2",), ("seed=3",)]
    assert words_of("seed=choice(4,5)") == [("seed=4",), ("seed=5",)]
    assert words_of("optimizer.betas=[0.9,0.95],[0.9,0.99]") == [
        ("optimizer.betas=[0.9,0.95]",),
        ("optimizer.betas=[0.9,0.99]",),
    ]
    with pytest.raises(SettingsError, match=r"optimizer.lr=interval\(0,1\) is a range, of which a grid cannot"):
        combinations(["optimizer.lr=interval(0,1)"])


def test_a_job_is_known_by_what_decides_its_outcome() -> None:
    key = key_of(make_config(*SMALL, "optimizer.lr=1e-3", "seed=3"))
    assert len(key) == KEY_LENGTH
    assert key == key_of(make_config("seed=3", "optimizer.lr=0.001", *SMALL))
    assert key == key_of(make_config(*SMALL, "optimizer.lr=1e-3", "seed=3", "trainer.save_every=7", "resume=auto"))
    for other in ("seed=4", "trainer.max_steps=7", "dataset=text dataset.path=other.txt", "model.dropout=0.3"):
        assert key != key_of(make_config(*SMALL, "optimizer.lr=1e-3", "seed=3", *other.split()))


def test_a_name_is_short_and_safe_whatever_the_values_are() -> None:
    assert name_of({"model": "gpt2", "optimizer.lr": "0.001"}, "0123456789") == (
        "model=gpt2,optimizer.lr=0.001-0123456789"
    )
    assert name_of({}, "0123456789") == "run-0123456789"
    name = name_of({f"key{n}": "../a b/*?" + "x" * 90 for n in range(9)}, "0123456789")
    assert len(name) <= 112
    assert "/" not in name
    assert " " not in name
    assert name.endswith("-0123456789")


def test_a_folder_is_found_by_its_hash_whatever_it_is_called(tmp_path: Path) -> None:
    assert folder_of(tmp_path, "abc", "seed=1-abc") == tmp_path / "seed=1-abc"
    (tmp_path / "model=gpt,seed=1-abc").mkdir()
    assert folder_of(tmp_path, "abc", "seed=1-abc") == tmp_path / "model=gpt,seed=1-abc"


def test_a_longer_line_in_another_order_finds_the_jobs_of_a_shorter_one(tmp_path: Path) -> None:
    first = plan(combinations([*SMALL, "seed=1,2", "model=gpt"]), tmp_path)
    longer = plan(combinations(["model=gpt,gpt2", "seed=2,1,3", *reversed(SMALL)]), tmp_path)
    assert len(longer) == 6
    folders = {job.name: job.run.path for job in longer}
    assert [folders[f"model=gpt, {job.name}"] for job in first] == [job.run.path for job in first]
    assert len(set(folders.values())) == 6
    assert {job.name for job in first} == {"seed=1", "seed=2"}


def test_jobs_that_are_one_experiment_are_one_job(tmp_path: Path) -> None:
    (job,) = plan(combinations([*SMALL, "optimizer.lr=1e-3,0.001"], variants={"a": [], "b": ["seed=1337"]}), tmp_path)
    assert job.swept["variant"] == "a"
    with pytest.raises(SettingsError, match=r"jobs differ only in trainer\.compile"):
        plan(combinations([*SMALL, "seed=1,2", "trainer.compile=true,false"]), tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PathError, match=r"cannot be written to[\s\S]*hydra.sweep.dir="):
        plan(combinations([*SMALL, "seed=1,2"]), tmp_path / "file" / "sweep")


def test_every_mistake_in_every_job_is_said_once_and_no_folder_is_made(tmp_path: Path) -> None:
    line = ["model=gpt,gtp2", "optimizer.lr=1e-3,fast", "size.n_heads=3,4", "size.d_model=16"]
    with pytest.raises(SettingsError) as caught:
        plan(combinations(line), tmp_path)
    text = str(caught.value)
    for part in (
        "no model is called 'gtp2'",
        "optimizer.lr is 'fast', and must be a number",
        "(16) is not divisible by size.n_heads (3)",
    ):
        assert text.count(part) == 1
    with pytest.raises(SettingsError, match=r"there is no setting 'optimizer\.lrr'"):
        plan(combinations([], {"optimizer.lrr": "1,2"}, {"plain": []}), tmp_path)
    with pytest.raises(SettingsError, match="resume=somewhere goes on with one run"):
        plan(combinations(["seed=1,2", "resume=somewhere"]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_many_combinations_are_refused_before_they_are_made() -> None:
    axes = [f"a.b{n}=range(0,1000)" for n in range(9)]
    with pytest.raises(SettingsError, match=r"combine to 1(,000){9} jobs[\s\S]*a\.b0, a\.b1"):
        combinations(axes)


def test_values_that_are_none_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"seed=range\(3,1\) has no value in it"):
        combinations(["seed=range(3,1)", "optimizer.lr=1,2"])


def test_a_job_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
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
