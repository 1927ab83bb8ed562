import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.errors import SettingsError
from nanolm.runs.directory import RunDirectory
from nanolm.training.trainer import train
from tests.helpers import SMALL, Nanolm, make_config
from tests.runs.made import make_run

METRICS = "best_val_loss,bits_per_byte,tokens"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two learning rates with two seeds each, and one that diverged."""
    for lr, losses in ((0.01, [2.0, 2.01]), (0.1, [3.0, 3.011])):
        for seed, loss in enumerate(losses, start=1):
            settings = {"optimizer.lr": lr, "seed": seed}
            make_run(tmp_path / "sweep" / f"lr={lr},seed={seed}", losses=[4.0, loss], settings=settings)
    path = tmp_path / "sweep" / "lr=1,seed=1"
    make_run(path, losses=[5.0], settings={"optimizer.lr": 1.0}, status="diverged")
    return tmp_path / "sweep"


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.run(["compare", *arguments]) == 0
    return capsys.readouterr().out


def test_real_runs_are_compared_without_their_text(nanolm: Nanolm, small_text: Path) -> None:
    overrides = ("dataset=text", f"dataset.path={small_text}", "tokenizer=char", *SMALL, "trainer.max_steps=10")
    for model in ("bigram", "gpt"):
        config = make_config(*overrides, f"model={model}")
        for config.seed in (1, 2):
            run = RunDirectory(nanolm.folder / "sweep" / f"{model}_{config.seed}")
            with run.claim():
                train(config, run, choices={"model": model})
    small_text.unlink()
    done = nanolm("compare", "sweep", "--json")
    assert done.returncode == 0, done.stderr
    means = [row["figures"]["best_val_loss"]["mean"] for row in json.loads(done.stdout)["rows"]]
    found = json.loads(nanolm("compare", "sweep", "--target", str(sum(means) / 2), "--json").stdout)
    assert [row["settings"] for row in found["rows"]] == [{"model": "gpt"}, {"model": "bigram"}]
    gpt, bigram = found["rows"]
    assert (gpt["n_seeds"], gpt["verdict"], bigram["verdict"]) == (2, "best", "different")
    assert gpt["figures"]["tokens"]["mean"] == 10 * 4 * 16
    assert gpt["figures"]["flops"]["mean"] > bigram["figures"]["flops"]["mean"] >= 0
    assert (gpt["n_reached"], bigram["n_reached"]) == (2, 0)
    lines = {line["name"]: line["bits_per_byte"] for line in found["baselines"]}
    assert set(lines) == {"counted unigram", "counted bigram", "gzip", "bz2", "xz"}
    assert lines["xz"] < lines["counted bigram"] < lines["counted unigram"]
    table = nanolm("compare", "sweep").stdout
    assert "gpt" in table
    assert all(len(line) <= 80 for line in table.splitlines())


def test_table_at_80_columns(sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = printed(capsys, monkeypatch, 80, str(sweep))
    rows = [line.split() for line in out.splitlines()]
    assert ["0.01", "2", "2.0050", "±0.0635", "best"] in rows
    assert ["0.1", "2", "3.0055", "±0.0699", "yes,", "3e-4", "+1.0005", "±0.0064"] in rows
    assert ["1", "diverged", "1", "–"] in rows
    assert ["counted", "bigram", "2.5000"] in rows
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "t-test paired by seed of val loss final" in out
    assert "not judged, as they are not completed: lr=1,seed=1 (diverged)" in " ".join(out.split())
    assert "columns hidden (terminal too narrow): bits per byte, val loss best, perplexity" in " ".join(out.split())
    assert "perplexity" not in out.split("columns hidden")[0]


def test_a_wide_table_hides_no_column(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = printed(capsys, monkeypatch, 200, str(sweep))
    for heading in ("perplexity", "FLOPs", "seconds", "tokens", "val loss"):
        assert heading in out
    assert "columns hidden" not in out


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    out = printed(capsys, monkeypatch, width, str(sweep), "--target", "2.5", "--by", "lr")
    assert all(len(line) <= width for line in out.splitlines())
    assert "2.0050" in out


def test_a_target_never_reached_shows_the_best_loss(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = printed(capsys, monkeypatch, 200, str(sweep), "--target", "2.005")
    assert "1.28k (1 of 2)" in out
    assert "never (best 3)" in out
    assert "tokens to" in out


def test_csv_has_exact_values(sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = printed(capsys, monkeypatch, 80, str(sweep), "--csv", "--metric", METRICS)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["row"] for row in rows[3:]] == ["counted unigram", "counted bigram", "gzip", "xz"]
    assert rows[0]["optimizer.lr"] == "0.01"
    assert float(rows[0]["best_val_loss"]) == pytest.approx(2.005)
    assert float(rows[0]["best_val_loss_interval"]) == pytest.approx(0.0635, abs=1e-4)
    assert (rows[2]["status"], rows[2]["tokens"]) == ("diverged", "640.0")
    assert "perplexity" not in rows[0]


def test_csv_escapes_formulas_of_run_names(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, run in enumerate(path.parent for path in sorted(sweep.rglob("config.yaml"))):
        run.rename(run.with_name(f"=1+{number}"))
    out = printed(capsys, monkeypatch, 80, str(sweep), "--csv")
    assert [line for line in out.splitlines() if line.startswith("=")] == []
    assert "\n'=1+" in out


def test_markdown_is_a_table(sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = printed(capsys, monkeypatch, 80, str(sweep), "--markdown", "--metric", METRICS).splitlines()
    assert (
        out[0]
        == "| lr | status | seeds | val loss best | differs from best | difference to best | bits per byte | tokens |"
    )
    assert out[1] == "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |"
    assert out[2] == "| **0.01** |  | **2** | **2.0050 ±0.0635** | **best** |  | **3.0075 ±0.0953** | **1.28k** |"
    assert {line.count("|") for line in out[:9]} == {9}


def test_a_damaged_run_is_shown_with_the_others(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(sweep / "2026-11-21_08-55-48_broken", losses=[1.0], config="seed: [1\n")
    out = printed(capsys, monkeypatch, 120, str(sweep))
    rows = [line.split() for line in out.splitlines()]
    assert ["…1_08-55-48_broken", "damaged", "1", "–", "–"] in [row[:5] for row in rows]
    assert "2026-11-21_08-55-48_broken: config.yaml is damaged" in out
    assert ["2.0050", "±0.0635", "best"] in [row[2:5] for row in rows]
    assert sum(row[:1] == ["gzip"] for row in rows) == 1
    assert out.index("2.0050") < out.index("…1_08-55-48_broken")


def test_runs_without_metrics_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "a", losses=[], status="failed", baseline_losses=None, baseline_bits_per_byte=None)
    assert "failed" in printed(capsys, monkeypatch, 80, str(tmp_path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["empty"], "there is no run in empty"),
        (["nowhere"], "there is no folder nowhere"),
        (["sweep", "--metric", "perplexty"], "did you mean perplexity?"),
        (["sweep", "--sort", "lrr"], "did you mean lr?"),
        (["sweep", "--by", "modle"], "did you mean model?"),
        (["sweep", "--fit"], "use nanolm scaling sweep"),
    ],
)
def test_mistakes_are_reported(nanolm: Nanolm, sweep: Path, words: list[str], message: str) -> None:
    shutil.copytree(sweep, nanolm.folder / "sweep")
    (nanolm.folder / "empty").mkdir()
    done = nanolm("compare", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_compare_does_not_import_torch(sweep: Path) -> None:
    code = (
        "import sys\nfrom nanolm.cli.main import run\nrun(sys.argv[1:])\nprint('torch' in sys.modules, file=sys.stderr)"
    )
    words = ["compare", str(sweep), "--target", "2.5"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"


def test_markdown_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, lossless in (("c", True), ("a|_b", False)):
        make_run(tmp_path / name, lossless=lossless, settings={"optimizer.name": name})
    cli.run(["compare", str(tmp_path), "--markdown"])
    out = capsys.readouterr().out
    assert "a\\|\\_b" in out
    assert "\n\\* lossy tokenizer: \\<unk> hides text" in out


def test_detect_prints_the_seeds_needed(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compare", str(sweep), "--detect", "0.005"]) == 0
    out = capsys.readouterr().out
    assert "seeds per row detect a difference of 0.005 with 80% power" in out
    assert cli.run(["compare", str(sweep), "--detect", "0.005", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert f"{found['seeds']} seeds per row" in out
    assert found["spread"]["is_paired"] is True


def test_detect_of_one_row_is_for_rows_without_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, loss in enumerate((2.0, 2.1, 2.05, 1.98), start=1):
        make_run(tmp_path / f"{seed}", losses=[loss], settings={"seed": seed})
    assert cli.run(["compare", str(tmp_path), "--detect", "0.1"]) == 0
    assert "two rows that are not paired" in capsys.readouterr().out


def test_pareto_prints_a_plot_and_the_best_rows(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compare", str(sweep), "--pareto", "flops"]) == 0
    out = capsys.readouterr().out
    assert "FLOPs (log scale)" in out
    assert "lr=0.01" in out
    assert cli.run(["compare", str(sweep), "--pareto", "flops", "--json"]) == 0
    front = json.loads(capsys.readouterr().out)["front"]
    assert front[-1]["settings"] == {"optimizer.lr": 0.01}


def test_a_verdict_sets_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shift in (("base", 0.0), ("better", -0.1), ("worse", 0.1), ("same", 0.001)):
        for seed, noise in enumerate((0.0, 0.01, 0.03), start=1):
            loss = 2 + shift + noise + shift * noise * seed
            make_run(tmp_path / name / f"{seed}", losses=[loss], settings={"seed": seed})
    base = str(tmp_path / "base")
    statuses = {name: cli.run(["compare", str(tmp_path / name), "--against", base]) for name in ("better", "worse")}
    assert statuses == {"better": 0, "worse": 3}
    assert "better: val loss final -0.1" in capsys.readouterr().out
    # The runs of the baseline may lie below the same folder.
    words = [str(tmp_path / "same"), base, "--against", base, "--margin", "0.005", "--json"]
    assert cli.run(["compare", *words]) == 4
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["n_seeds"], found["margin"]) == ("not distinguishable", 3, 0.005)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--at", "tokns=3"], "--at is 'tokns', which is not a cost"),
        (["--at", "tokens=-3"], "--at is -3, which must be above 0"),
        (["--at", "tokens=5X"], "--at is '5X', which is not a number"),
        (["--at", "tokens=1T"], "--at is '1T', which is not a number"),
        (["--at", "tokens=5M"], "no run has a loss at 5M tokens"),
        (["--margin", "0.1"], "--margin needs --against"),
        (["--detect", "0"], "--detect is 0, which must be above 0"),
        (["--detect", "0.1", "--pareto", "flops"], "--pareto and --detect cannot be combined"),
        (["--detect", "0.1", "--metric", "tokens"], "tokens is not a loss"),
        (["--pareto", "money"], "--pareto is 'money', which is not a cost"),
    ],
)
def test_mistakes_in_costs_and_margins_are_errors(sweep: Path, words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        cli.run(["compare", str(sweep), *words])
