"""Damaged and hostile run directories: each is listed as damaged with the reason, beside the good ones."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nanolm.analysis import collection
from nanolm.analysis.comparison import compare
from nanolm.cli import main as cli
from nanolm.cli.runs import list_runs
from nanolm.errors import NanolmError, RunError
from nanolm.report.contents import gather
from nanolm.runs.samples import MAX_BYTES, read_samples
from tests.runs.made import CONFIG, make_run

SECRET = "secret: the private words of somebody else\n"
BOMB = "a: &a [x]\n" + "".join(f"b{n}: &b{n} [{', '.join(['*a'] * 10)}]\n" for n in range(9))
ROW = '{"step": 1, "split": "val", "loss": 2.0}\n'


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A good run and a bad one, which has no results in its summary, and a private file beside them."""
    (tmp_path / "secret").write_text(SECRET)
    make_run(tmp_path / "runs" / "good")
    make_run(tmp_path / "runs" / "bad", best_val_loss=None, settings={"optimizer.lr": 0.01})
    return tmp_path / "runs"


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(text)


def link(name: str, target: str) -> Callable[[Path], object]:
    def replace(run: Path) -> None:
        (run / name).unlink()
        (run / name).symlink_to(target)

    return replace


def special(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return replace


DAMAGE = [
    (write("config.yaml", BOMB), "config.yaml is damaged: anchors and aliases are not supported (line 1)"),
    (write("config.yaml", "a: " + "[" * 60_000), "config.yaml is damaged: it is nested more than 40 levels deep"),
    (write("config.yaml", "seed: 1\nday: 2020-01-01\n"), "config.yaml is damaged: '2020-01-01' is a timestamp"),
    (write("config.yaml", "seed: 1\nkeys: !!set {a}\n"), "config.yaml is damaged: the tag tag:yaml.org,2002:set"),
    (write("config.yaml", "seed: 1\n" + "#" * 1_000_000), "config.yaml cannot be read: it has 1,000,008 bytes"),
    (write("config.yaml", CONFIG + "extra: [\n"), "config.yaml is damaged: did not find expected node content"),
    (write("config.yaml", CONFIG.replace("bigram", "[x]")), "config.yaml is damaged: model.name is ['x'], and must be"),
    (link("config.yaml", "../../secret"), "config.yaml cannot be read: it is a link to"),
    (link("config.yaml", "/dev/zero"), "config.yaml cannot be read: it is a link to"),
    (special("config.yaml", os.mkfifo), "config.yaml cannot be read: it is a FIFO"),
    (special("config.yaml", os.mkdir), "config.yaml cannot be read: it is a folder"),
    (write("summary.json", "[" * 200_000), "summary.json is damaged: nested too deeply"),
    (write("summary.json", '{"step": "20"}'), "summary.json is damaged: step is '20', and must be a whole number"),
    (write("summary.json", '{"choices": {"model": []}}'), "summary.json is damaged: choices.model is []"),
    (link("summary.json", "../../secret"), "summary.json cannot be read: it is a link to"),
    (special("summary.json", os.mkdir), "summary.json cannot be read: it is a folder"),
    (write("metrics.jsonl", ROW + '{"loss": 2}\n'), "line 2 of metrics.jsonl is damaged: it has no step or split"),
    (
        write("metrics.jsonl", ROW + '{"step": "2", "split": "val"}\n'),
        "metrics.jsonl is damaged: step is '2', and",
    ),
    (write("metrics.jsonl", ROW + '{"step": null, "split": "val"}\n'), "metrics.jsonl is damaged: it has no step"),
    (write("metrics.jsonl", ROW + "[" * 200_000 + "\n"), "line 2 of metrics.jsonl is damaged: nested too deeply"),
    (special("metrics.jsonl", os.mkdir), "metrics.jsonl cannot be read: "),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE, ids=[reason for _, reason in DAMAGE])
def test_damage_is_named_beside_the_good_run(
    damage: Callable[[Path], object], reason: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(runs / "bad")
    entries = {entry.name: entry for entry in list_runs(str(runs))}
    assert (entries["good"].status, entries["good"].faults) == ("completed", [])
    assert entries["bad"].status == "damaged"
    assert entries["bad"].faults[0].startswith(reason) or reason in entries["bad"].faults[0]
    assert [entry.name for entry in list_runs(str(runs), statuses=["damaged"])] == ["bad"]

    found = collection.find([runs])
    compared = compare(found)
    assert {row.status for row in compared.rows} <= {"completed", "damaged", "1 completed, 1 damaged"}
    assert any(note.startswith("bad: ") and reason in note for note in compared.notes)

    (bad,) = [entry for entry in gather(found).runs if entry.name == "bad"]
    assert bad.status == "damaged"
    assert reason in bad.faults[0]
    assert "private" not in bad.config

    assert cli.run(["runs", str(runs), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["runs"]
    assert {run["name"]: run["status"] for run in listed} == {"good": "completed", "bad": "damaged"}
    if "metrics" not in reason:
        with pytest.raises(NanolmError) as caught:
            cli.run(["diff", str(runs / "good"), str(runs / "bad")])
        assert reason in str(caught.value)


def test_links_of_samples_out_of_the_run_are_not_followed(runs: Path, tmp_path: Path) -> None:
    sample = '{"step": 1, "text": "private"}\n'
    (tmp_path / "samples").write_text(sample)
    (runs / "bad" / "samples.jsonl").symlink_to("../../samples")
    (runs / "good" / "own.jsonl").write_text(sample)
    (runs / "good" / "samples.jsonl").symlink_to("own.jsonl")
    good, bad = sorted(gather(collection.find([runs])).runs, key=lambda entry: entry.name, reverse=True)
    assert (good.samples, good.faults) == ([(1, "private")], ())
    assert bad.samples == []
    assert bad.faults[0].startswith("samples.jsonl cannot be read: it is a link to")
    os.truncate(runs / "good" / "own.jsonl", MAX_BYTES + 1)
    with pytest.raises(RunError, match=r"samples\.jsonl cannot be read: it has 16,000,001 bytes"):
        read_samples(runs / "good" / "samples.jsonl")


def test_file_named_to_diff_may_be_a_link_unless_it_is_of_a_run(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "own.yaml").symlink_to("../secret")
    config = runs / "bad" / "config.yaml"
    cli.run(["diff", str(tmp_path / "elsewhere" / "own.yaml"), str(config)])
    assert "private" in capsys.readouterr().out
    config.unlink()
    config.symlink_to(tmp_path / "secret")
    with pytest.raises(RunError, match=r"config\.yaml cannot be read: it is a link"):
        cli.run(["diff", str(runs / "good" / "config.yaml"), str(config)])


def test_manifest_elsewhere_makes_no_note(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "step-00000010").mkdir()
    (tmp_path / "step-00000010" / "manifest.json").write_text('{"settings": {"optimizer.lr": 0.5}}')
    (runs / "good" / "checkpoints").symlink_to(tmp_path)
    assert [run.notes for run in collection.find([runs])] == [(), ()]


def test_links_that_lead_to_themselves_hide_no_run(runs: Path) -> None:
    (runs / "loop").symlink_to("loop")
    (runs / "up").symlink_to("..")
    (runs / "gone").symlink_to("nowhere")
    assert [run.name for run in collection.find([runs])] == ["bad", "good"]


def test_runs_below_many_folders_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        Path("a").mkdir()
        os.chdir("a")
    for name in ("one", "two"):
        make_run(Path(name), rows=False)
    monkeypatch.chdir(tmp_path)
    for number in range(200):
        Path(f"folder{number}").mkdir()
    assert [run.name for run in collection.find([tmp_path])] == ["one", "two"]
    monkeypatch.setattr(collection, "MAX_FOLDERS", 1000)
    with pytest.raises(RunError, match="more than 1,000 folders"):
        collection.find([tmp_path])
    # shutil.rmtree, which pytest uses, calls itself for each level.
    subprocess.run(["rm", "-r", tmp_path / "a"], check=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows refuses such names")
@pytest.mark.parametrize(
    "name",
    ["\x1b[2Jclear", "two\nlines", "\u202egnp.exe", b"caf\xe9".decode("utf-8", "surrogateescape"), "n" * 255, "[red]x"],
    ids=ascii,
)
def test_names_and_texts_do_not_control_the_terminal_or_the_page(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b]0;title\x07<script>alert(1)</script>\ud800[/red]"
    make_run(tmp_path / "runs" / "good")
    make_run(
        tmp_path / "runs" / name,
        status="failed",
        error=hostile,
        choices={"model": hostile},
        baseline_losses={hostile: 2.5},
        versions={"torch": hostile},
        settings={"optimizer.name": hostile, "seed": 2},
    )
    runs, page = str(tmp_path / "runs"), tmp_path / "page.html"
    commands = [["runs", runs], ["runs", runs, "--json"], ["compare", runs], ["compare", runs, "--markdown"]]
    commands += [["compare", runs, "--json"], ["diff", f"{runs}/good", f"{runs}/{name}"]]
    for command in [*commands, ["report", runs, "-o", str(page), "--maps", "0"]]:
        assert not cli.run(command)
        output = capsys.readouterr().out
        assert not {character for character in output if character in "\x1b\x07\u202e\ud800\udce9\x9b"}, command
    assert "<script>alert" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("loss", [1e49, 705.0, 1e-300, 0.0])
def test_extreme_losses_are_compared(loss: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lr in (0.01, 0.1):
        for seed in (1, 2):
            losses, settings = [loss * lr * seed], {"optimizer.lr": lr, "seed": seed}
            make_run(tmp_path / f"{lr}_{seed}", losses=losses, settings=settings, baseline_losses={"a": loss})
    for metric in ("best_val_loss", "perplexity", "bits_per_byte"):
        for form in ("--json", "--markdown", "--csv"):
            assert not cli.run(["compare", str(tmp_path), form, "--metric", metric])
    assert not cli.run(["compare", str(tmp_path)])
    assert "Traceback" not in capsys.readouterr().err
