from pathlib import Path

import pytest

from nanolm.compose import compose_command, compose_jobs
from nanolm.errors import SettingsError


def test_job_equals_its_command_line(tmp_path: Path) -> None:
    jobs = [
        ["model=bigram", "optimizer.lr=1e-3", "seed=3", "trainer.clip_norm=null"],
        ["model=gpt2", "optimizer.beta2=0.99", "trainer.precision=fp32", "size.n_layers=3"],
        ["experiment=ladder/blocks", "trainer.max_steps=7", "++seed=4"],
        ["scheduler=product", "scheduler.parts=[cosine,step]", "logger.project='a, b'", "logger.group=null"],
        ["mask=pattern", "mask.pattern=SL", "model=bigram", "seed=3"],
    ]
    assert [job.config for job in compose_jobs(jobs)] == [compose_command(words).config for words in jobs]


@pytest.mark.parametrize(
    ("words", "hidden"),
    [
        (("optimizer.lr_multipliers={hidden:2}", "++optimizer.lr_multipliers.hidden=3"), 3),
        (("++optimizer.lr_multipliers.hidden=3", "optimizer.lr_multipliers={hidden:2}"), 2),
    ],
)
def test_job_overrides_apply_in_order(words: tuple[str, ...], hidden: int) -> None:
    (job,) = compose_jobs([words])
    assert job.config.optimizer.lr_multipliers.hidden == hidden
    assert job.config == compose_command(words).config


def test_job_names_the_option_without_the_setting() -> None:
    with pytest.raises(SettingsError, match=r"model=bigram has no setting 'model\.dropout', and another job"):
        compose_jobs([["model=gpt", "model.dropout=0.1"], ["model=bigram", "model.dropout=0.1"]])
