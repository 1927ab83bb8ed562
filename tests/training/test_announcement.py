from pathlib import Path

from nanolm.config.yaml_io import load_yaml
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.fork import Parent
from nanolm.training.schedules import factor
from nanolm.training.trainer import train
from tests.helpers import sigterm_at_step, small_config

LINE = ("model=bigram", "optimizer.lr=0.01", "trainer.max_steps=4", "trainer.eval_every=2", "trainer.save_every=2")


def lr_messages(run: RunDirectory) -> list[str]:
    lines = run.log.read_text().splitlines()
    run.log.unlink()
    return [line.split(" ", 2)[2] for line in lines if "learning rate" in line]


def test_jump_of_the_lr_is_announced(small_text: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    line = (*LINE, "scheduler=cosine", "scheduler.warmup_steps=0")
    config = small_config(small_text, *line)
    with sigterm_at_step(3):
        train(config, run, quiet=True)
    train(config, run, quiet=True)
    assert lr_messages(run) == []
    for steps, had in ((8, 4), (20, 8)):
        longer = small_config(small_text, *line, f"trainer.max_steps={steps}")
        old, new = (0.01 * factor(at, of, config.scheduler) for at, of in ((had - 1, had), (had, steps)))
        train(longer, run, quiet=True)
        expected = f"from {old:.3g} (a schedule of {had} steps) to {new:.3g} (of {steps} steps)"
        assert lr_messages(run) == [f"the learning rate changes at step {had} {expected}"]
    parent = Parent(run, load_yaml(run.config), checkpoint.at_step(run.checkpoints, 18))
    fork = RunDirectory(tmp_path / "fork")
    fork.path.mkdir()
    train(
        small_config(small_text, *LINE, "trainer.max_steps=20", "scheduler=constant"), fork, parent=parent, quiet=True
    )
    (said,) = lr_messages(fork)
    assert said.endswith("to 0.01 (of 20 steps)")


def test_constant_lr_is_not_announced(small_text: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    line = (*LINE, "scheduler=constant", "scheduler.warmup_steps=0")
    for steps in (4, 8):
        train(small_config(small_text, *line, f"trainer.max_steps={steps}"), run, quiet=True)
    assert lr_messages(run) == []
