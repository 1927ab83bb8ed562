import dataclasses
import functools
import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from nanolm.cli import train as train_command
from nanolm.compose import CONFIG_NAME, compose_command, config_folder, register_schemas
from nanolm.config.fields import flat
from nanolm.config.roles import affects_results
from nanolm.config.run import Config
from nanolm.errors import SettingsError
from nanolm.sweeps.combinations import combinations
from nanolm.sweeps.planning import Job, plan
from tests.helpers import REPOSITORY, SMALL, Nanolm, make_config, mostly_slow

# As docs/sweeps.md has them.
N_JOBS = {
    "ablation": 18,
    "ladder": 17,
    "lr": 7,
    "masks": 7,
    "race": 11,
    "recipe": 30,
    "scaling": 20,
    "seeds": 5,
    "texts": 8,
    "tokenizers": 7,
}


def hydra_of(sweep: str) -> Any:
    """Return the Hydra settings of a sweep file: its sweeper and its folder."""
    register_schemas()
    with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
        return compose(CONFIG_NAME, overrides=[f"sweep={sweep}"], return_hydra_config=True).hydra


@functools.cache
def jobs(name: str, *overrides: str) -> list[Job]:
    """Return the jobs of a sweep file, planned but not run."""
    sweeper = hydra_of(name).sweeper
    with tempfile.TemporaryDirectory() as folder:
        return plan(combinations([f"sweep={name}", *overrides], sweeper.params, sweeper.variants), Path(folder))


def settings(config: Config) -> dict[str, Any]:
    return {key: value for key, value in flat(config).items() if not key.startswith("logger.")}


def test_sweep_files_are_documented() -> None:
    assert {path.stem for path in (config_folder() / "sweep").glob("*.yaml")} == set(N_JOBS)
    text = (REPOSITORY / "docs" / "sweeps.md").read_text()
    for name, n_jobs in N_JOBS.items():
        assert f"| `{name}` | {n_jobs} |" in text


@pytest.mark.parametrize("name", mostly_slow(N_JOBS, quick=["seeds", "masks"]))
def test_sweep_files_have_valid_and_different_jobs(name: str) -> None:
    found = jobs(name)
    assert len(found) == N_JOBS[name]
    assert len({job.run.path.name for job in found}) == len({job.label for job in found}) == len(found)
    assert hydra_of(name).sweep.dir == f"outputs/sweep_{name}"


def test_sweep_lr_combines_with_other_overrides() -> None:
    overrides = ("dataset=tiny_shakespeare", "model=gpt2", "trainer.max_steps=20", "optimizer.lr=0.5,0.25")
    found = jobs("lr", *overrides)
    assert sorted(job.config.optimizer.lr for job in found) == [0.25, 0.5]
    assert {job.config.trainer.max_steps for job in found} == {20}
    assert all(job.config.model == make_config("model=gpt2").model for job in found)


@pytest.mark.slow
def test_sweep_ladder_has_every_rung_for_a_cpu() -> None:
    rungs = {path.stem for path in (config_folder() / "experiment" / "ladder").glob("*.yaml")} - {"scaled_up"}
    found = {job.swept["variant"]: job.config for job in jobs("ladder")}
    assert set(found) == rungs | {"counted_pairs", "counted_five"}
    for rung in rungs:
        assert settings(found[rung]) == settings(make_config(f"experiment=ladder/{rung}"))
    assert found["counted_five"].model.order == 5
    # A GPT on counted n-grams has the size and the budget of a short run of model=gpt.
    small = {name: config for name, config in found.items() if name != "ngram_gpt"}
    assert len({(config.trainer.max_steps, config.dataset.name) for config in small.values()}) == 1


def test_sweep_masks_has_only_causal_masks() -> None:
    from nanolm.model import masks

    for job in jobs("masks"):
        assert masks.noncausal_warnings(job.config) == []


def test_sweep_ablation_changes_one_part_at_a_time() -> None:
    found = {job.swept["variant"]: settings(job.config) for job in jobs("ablation")}
    rising = [name for name in found if name[0].isdigit()]
    falling = [name for name in found if not name[0].isdigit()]
    assert [int(name.split("_")[0]) for name in rising] == list(range(10))
    recipe = settings(make_config("model=gpt"))
    assert found[rising[0]] == settings(make_config("model=gpt2", "optimizer=adamw"))
    assert found["8_zero_projections"] == settings(make_config("model=gpt", "optimizer=adamw"))
    assert found[rising[-1]] == recipe

    def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
        """Return the settings that differ; an optimizer counts as one setting, its name."""
        keys = {key for key in {*before, *after} if before.get(key) != after.get(key)}
        return {key for key in keys if not key.startswith("optimizer.")} | (keys & {"optimizer.name"})

    steps = [changed(found[one], found[next_one]) for one, next_one in itertools.pairwise(rising)]
    assert all(len(step) == 1 for step in steps)
    parts = set().union(*steps)
    assert len(parts) == len(steps), "each part is added once"
    taken = [changed(recipe, found[name]) for name in falling]
    assert all(len(step) == 1 for step in taken)
    assert set().union(*taken) == parts - {"optimizer.name"}, "without muon is 8_zero_projections"
    for name in falling:
        (key,) = changed(recipe, found[name])
        assert found[name][key] == found[rising[0]][key], "the value before the part was added"


@pytest.mark.slow
def test_sweep_race_leads_from_nanogpt_to_shakespeare() -> None:
    found = {job.swept["variant"]: settings(job.config) for job in jobs("race")}
    sweep = {"trainer.precision": "fp32", "trainer.eval_every": 80}

    def of(*overrides: str) -> dict[str, Any]:
        return settings(make_config(*overrides)) | sweep

    assert found["0_nanogpt"] == of("experiment=nanogpt_cpu")
    assert found["8_recipe"] == of("experiment=shakespeare_cpu")
    assert found["9_sprint"] == of("experiment=shakespeare_sprint")
    assert found["10_ngrams"] == of("experiment=shakespeare_ngram")
    # Each job changes one group of settings, and the last two are experiments.
    changes = [
        {key.split(".")[0] for key in {*before, *after} if before.get(key) != after.get(key)}
        for before, after in itertools.pairwise(list(map(_results, found.values()))[:-1])
    ]
    # max_steps belongs to the schedule.
    expected = [
        {"optimizer"},
        {"model"},
        {"optimizer"},
        {"model"},
        {"scheduler"},
        {"model"},
        {"optimizer"},
        {"trainer"},
    ]
    assert changes == [*expected, {"optimizer", "scheduler", "trainer"}]


def _results(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide the result of a run."""
    return {key: value for key, value in config.items() if affects_results(key)}


def test_sweep_scaling_spans_sizes_and_tokens_for_a_fit() -> None:
    found = jobs("scaling")
    sizes = {dataclasses.astuple(job.config.size) for job in found}
    steps = {job.config.trainer.max_steps for job in found}
    assert (len(sizes), len(steps)) == (5, 4)
    assert max(steps) >= 8 * min(steps)
    assert all(step % job.config.trainer.eval_every == 0 for job in found for step in steps)


def test_sweep_option_needs_multirun() -> None:
    with pytest.raises(SettingsError, match=r"sweep=lr applies to sweeps only[\s\S]*nanolm train -m"):
        train_command.run(["sweep=lr"])
    assert compose_command(["sweep=lr"], multirun=True).config == make_config()
    with pytest.raises(SettingsError, match=r"no sweep is called 'lrs'[\s\S]*did you mean lr\?"):
        compose_command(["sweep=lrs"], multirun=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(N_JOBS) - {"ladder"}))
def test_sweep_files_run_to_their_end_when_shortened(name: str, nanolm: Nanolm) -> None:
    (nanolm.folder / "text.txt").write_text(
        "".join(f"{n} and {n + 1} make {2 * n + 1}: {'or not ' * (n % 5)}says page {n * n}.\n" for n in range(4000))
    )
    swept = {"scaling": "size.", "recipe": "trainer.batch_size"}.get(name)
    small = [override for override in SMALL if swept is None or not override.startswith(swept)]
    if name == "masks":
        small.append("size.context_length=64")
    settings = (*small, "dataset=text", "dataset.path=text.txt", "trainer.max_steps=3", "dataset.val_fraction=0.01")
    done = nanolm("train", "-m", f"sweep={name}", *settings, timeout=500)
    assert done.returncode == 0, done.stderr


def test_rows_of_the_benchmark_of_steps_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import bench_step

    for row in bench_step.ROWS.values():
        for line in (row.ours, row.theirs):
            compose_command([*line, *bench_step.SHAPES])
    recipe = compose_command([*bench_step.ROWS["recipe"].ours, *bench_step.SHAPES]).config
    experiment = make_config("experiment=shakespeare_cpu")
    assert recipe.model == experiment.model
    assert recipe.optimizer.normuon_beta2 == experiment.optimizer.normuon_beta2
