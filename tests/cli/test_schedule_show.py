import json
import sys
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.cli.schedule_show import POINTS, make_schedule, sample_steps, to_png
from nanolm.config.scheduler import CosineConfig
from nanolm.errors import SettingsError
from nanolm.plotting import HEIGHT, Curve, terminal_plot
from nanolm.training.schedules import factor
from tests.helpers import Nanolm, make_config

PRODUCT = "scheduler.parts=[{name:step,step_size:5,gamma:0.5},{name:cosine_restarts,period:4}]"


def show(*arguments: str | Path) -> None:
    assert cli.run(["schedule", "show", *map(str, arguments)]) == 0


def test_lr_is_the_one_that_training_sets(nanolm: Nanolm) -> None:
    overrides = ("trainer.max_steps=20", "optimizer.lr=0.5", "scheduler=product", PRODUCT)
    done = nanolm("schedule", "show", *overrides, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    config = make_config(*overrides)
    assert found["lr"] == [0.5 * factor(step, 20, config.scheduler) for step in range(20)]
    assert found["steps"] == list(range(20))
    assert (found["scheduler"], found["max_steps"], found["warmup_steps"]) == ("product", 20, 1)
    assert found["settings"]["parts"][1] == {"name": "cosine_restarts", "period": 4}


def test_curve_has_axes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show("scheduler=trapezoid", "scheduler.warmup_steps=99", "trainer.max_steps=401", "optimizer.lr=0.01")
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "trapezoid: 401 steps, 99 of them warmup; lr from 0.0001 to 0.000166, between 0.0001 and 0.01"
    assert len(lines) == HEIGHT
    assert max(map(len, lines)) <= 80
    assert [line.split("┤")[0].strip() for line in lines if "┤" in line] == ["0.01", "0.0075", "0.005", "0.0025", "0"]
    assert lines[-2].split() == ["0", "100", "200", "300", "400"]
    assert lines[-1].split() == ["lr", "step"]
    assert lines[-1].startswith("lr")


@pytest.mark.parametrize("max_steps", [1, 2, 3, 100_000])
def test_runs_of_any_length_are_drawn(max_steps: int) -> None:
    config = CosineConfig()
    steps = sample_steps(max_steps, config)
    drawn = terminal_plot([Curve(steps, [factor(step, max_steps, config) for step in steps])], 60, "step", "lr")
    assert len(drawn.splitlines()) == HEIGHT


def test_schedule_show_samples_a_long_run(capsys: pytest.CaptureFixture[str]) -> None:
    show("scheduler=trapezoid", "trainer.max_steps=100_000_000", "optimizer.lr=0.01", "--json")
    found = json.loads(capsys.readouterr().out)
    steps, lrs = found["steps"], dict(zip(found["steps"], found["lr"], strict=True))
    assert (found["max_steps"], found["warmup_steps"], steps[0], steps[-1]) == (10**8, 5 * 10**6, 0, 10**8 - 1)
    assert POINTS <= len(steps) <= 2 * POINTS
    assert steps == sorted(set(steps))
    # The end of warmup and the start of the decay, exactly.
    assert lrs[5 * 10**6] == lrs[81 * 10**6] == 0.01 > lrs[5 * 10**6 - 1]
    config = make_config("scheduler=trapezoid")
    assert all(lr == 0.01 * factor(step, 10**8, config.scheduler) for step, lr in lrs.items())


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["scheduler=step", "scheduler.step_size=30_000_000"], [30_000_000, 59_999_999, 60_000_000]),
        (["scheduler=cosine_restarts"], [25_000_000, 24_999_999, 75_000_000]),
        (["scheduler=one_cycle", "scheduler.rise_fraction=0.123"], [12_299_999]),
        (["scheduler=chain", "scheduler.parts=[step,one_cycle]", "scheduler.boundaries=[40_000_001]"], [40_000_001]),
        (["scheduler=product", "scheduler.parts=[step,{name:cosine_restarts,period:77_777_777}]"], [77_777_777]),
        (["scheduler=step", "scheduler.step_size=1"], [0, 99_999_999]),
    ],
)
def test_sampled_steps_keep_the_corners(overrides: list[str], kept: list[int]) -> None:
    steps = sample_steps(10**8, make_config(*overrides, "scheduler.warmup_steps=0").scheduler)
    assert set(kept) <= set(steps)
    assert len(steps) <= 2 * POINTS + 2


def test_sampled_steps_match_no_period() -> None:
    config = make_config("scheduler=cosine_restarts", "scheduler.period=50_000", "scheduler.warmup_steps=0").scheduler
    phases = {step % 50_000 // 5_000 for step in sample_steps(10**8, config)}
    assert phases == set(range(10))


def test_plateau_has_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    show("scheduler=plateau")
    assert capsys.readouterr().out.endswith("\ndrawn as if the validation loss improved at every evaluation\n")


def test_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra nanolm[plot] is not installed")
    path = tmp_path / "lr.png"
    show("scheduler=linear", "--png", path)
    assert capsys.readouterr().out.endswith(f"\n\nwritten to {path}\n")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes() != to_png(make_schedule(make_config("scheduler=step")))
    with pytest.raises(SettingsError, match=r"cannot be written: No such file or directory[\s\S]*nowhere"):
        show("scheduler=linear", "--png", tmp_path / "nowhere" / "lr.png")


def test_a_png_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=r"pip install 'matplotlib>="):
        show("--png", tmp_path / "lr.png")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_reported(nanolm: Nanolm) -> None:
    for arguments, expected in {
        ("shwo",): "did you mean show?",
        ("show", "scheduler=cosin"): "did you mean cosine?",
        ("show", "scheduler=product", "scheduler.parts=[stepp]"): "did you mean step?",
        ("show", "scheduler=chain", "scheduler.parts=[step]"): "scheduler.boundaries has no value",
    }.items():
        done = nanolm("schedule", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    assert nanolm("schedule").stdout.startswith("nanolm schedule show")


def test_batch_schedules_are_drawn_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        "trainer.max_steps=10_000",
        "trainer.batch_size=12",
        "size.context_length=64",
        "scheduler.cooldown_fraction=0.2",
    ]
    overrides += ["trainer.batch_size_schedule=[[0.25001,4]]", "trainer.context_length_schedule=[[0.5,32]]"]
    show(*overrides)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 * HEIGHT + 1
    assert [line.split()[0] for line in lines if line.endswith("step")] == ["lr", "batch", "context"]
    assert lines[-1] == (
        "batches of 4 x 32 until step 2,500, 12 x 32 until step 5,000, then 12 x 64 tokens; 5,120,000 tokens in all"
    )
    show(*overrides, "--json")
    found = json.loads(capsys.readouterr().out)
    shapes = dict(zip(found["steps"], zip(found["batch_size"], found["context_length"], strict=True), strict=True))
    assert [shapes[step] for step in (0, 2499, 2500, 4999, 5000)] == [(4, 32), (4, 32), (12, 32), (12, 32), (12, 64)]
    assert found["tokens"] == 5_120_000
    assert 8000 in shapes
