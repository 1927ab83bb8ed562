import shutil
from pathlib import Path

import pytest

from nanolm.inference.evaluate import evaluate
from nanolm.inference.load import load_run
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import Summary
from nanolm.training import held_out
from nanolm.training.trainer import train
from tests.helpers import SMALL, make_config


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


def trained(run: RunDirectory, *overrides: str) -> Summary:
    text = run.path.parent / "text.txt"
    text.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(200)))
    words = ("dataset=text", f"dataset.path={text}", "dataset.test_fraction=0.1", "trainer.eval_every=2")
    train(make_config(*SMALL, *words, "model=bigram", "trainer.sample_tokens=0", *overrides), run)
    return run.read_summary()


def test_selected_checkpoint_is_scored_on_the_test_split(run: RunDirectory) -> None:
    # The loss rises again at this lr, so that the best checkpoint is not the last.
    summary = trained(run, "trainer.max_steps=8", "optimizer.lr=3", "scheduler=constant")
    assert summary.best_step is not None
    assert summary.best_step < 8
    assert (summary.test_step, summary.test_chosen_by) == (summary.best_step, "best_val_loss")
    expected = evaluate(load_run(str(run.path), checkpoint="best"), "test")
    assert (summary.test_loss, summary.test_bits_per_byte) == (expected["loss"], expected["bits_per_byte"])
    assert [score["steps_done"] for score in summary.test_history] == [8]


def test_extended_run_is_scored_again_and_keeps_the_history(run: RunDirectory) -> None:
    first = trained(run, "trainer.max_steps=4")
    second = trained(run, "trainer.max_steps=8")
    assert [score["steps_done"] for score in second.test_history] == [4, 8]
    assert [score["loss"] for score in second.test_history] == [first.test_loss, second.test_loss]
    assert second.test_loss != first.test_loss


def test_run_without_test_split_has_no_score(run: RunDirectory) -> None:
    summary = trained(run, "trainer.max_steps=2", "dataset.test_fraction=0")
    assert (summary.test_loss, summary.test_history) == (None, [])


def test_interrupted_run_is_scored_when_it_is_completed(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # A kill between the last checkpoint and the score.
        patch.setattr(held_out, "_loss", die)
        with pytest.raises(KeyboardInterrupt):
            trained(run, "trainer.max_steps=4")
    assert run.read_summary().test_loss is None
    summary = trained(run, "trainer.max_steps=4")
    assert summary.status == "completed"
    assert len(summary.test_history) == 1


@pytest.mark.slow
def test_counted_model_is_scored(run: RunDirectory) -> None:
    summary = trained(run, "model=ngram")
    assert summary.test_loss == pytest.approx(evaluate(load_run(str(run.path)), "test")["loss"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=schedule_free", "scheduler=constant"),
        ("trainer.ema_decay=0.9",),
        ("trainer.average_last=0.5",),
    ],
)
def test_the_weights_that_chose_the_checkpoint_are_scored(run: RunDirectory, overrides: tuple[str, ...]) -> None:
    summary = trained(run, "trainer.max_steps=4", *overrides)
    loaded = load_run(str(run.path), checkpoint="best")
    assert evaluate(loaded, "val")["loss"] == pytest.approx(summary.best_val_loss)
    assert evaluate(loaded, "test")["loss"] == pytest.approx(summary.test_loss)


def test_removed_checkpoint_is_named(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score = held_out._loss

    def removed(setup: object, step: int) -> float:
        shutil.rmtree(run.checkpoints / f"step-{step:08d}")
        return score(setup, step)  # type: ignore[arg-type]

    monkeypatch.setattr(held_out, "_loss", removed)
    summary = trained(run, "trainer.max_steps=2")
    assert (summary.status, summary.test_loss) == ("completed", None)
    assert "the test split is not scored: " in capsys.readouterr().err
