import shutil
import sys
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.errors import Problems, RunError, SettingsError, TokenizerError
from tests.helpers import Nanolm

pytest.importorskip("plotly", reason="the extra nanolm[report] is not installed")


def report(*arguments: str | Path) -> None:
    assert cli.run(["report", *map(str, arguments)]) == 0


def test_report_writes_one_file(nanolm: Nanolm, pair: Path) -> None:
    done = nanolm("report", pair, "-o", "report.html", "--text", "1 and 2", "--layer", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2 runs in report.html, 5.0 MB\n" or done.stdout.startswith("2 runs in report.html, 4.")
    page = (nanolm.folder / "report.html").read_text(encoding="utf-8")
    assert '"text":"1 and 2"' in page
    assert '"layer":1,' in page
    assert '"layer":0,' not in page
    assert [path.name for path in nanolm.folder.iterdir()] == ["report.html"]


def test_report_to_stdout(nanolm: Nanolm, pair: Path) -> None:
    done = nanolm("report", pair, "-o", "/dev/stdout", "--maps", "0")
    assert done.returncode == 0
    assert done.stdout.startswith("<!doctype html>")
    assert done.stdout.rstrip().endswith("</html>")
    assert done.stderr.startswith("2 runs in /dev/stdout")
    assert not list(nanolm.folder.iterdir())


def test_mistakes_are_reported(nanolm: Nanolm, pair: Path) -> None:
    (nanolm.folder / "empty").mkdir()
    for arguments, expected in {
        ("empty",): "there is no run in empty",
        ("nowhere",): "there is no folder nowhere",
        (str(pair), "-o", "missing/report.html"): "there is no folder missing",
    }.items():
        done = nanolm("report", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    assert not (nanolm.folder / "report.html").exists()


def test_all_wrong_paths_are_reported_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Problems) as error:
        report(tmp_path / "nowhere", "-o", tmp_path, "--png", tmp_path / "file")
    assert f"{tmp_path} is a folder" in str(error.value)
    assert f"{tmp_path / 'file'} is not a folder" in str(error.value)
    with pytest.raises(SettingsError, match=f"{tmp_path / 'file'} is not a folder"):
        report(tmp_path / "nowhere", "-o", tmp_path / "file" / "x.html")


def test_files_of_a_run_are_not_overwritten(pair: Path) -> None:
    run = next(path.parent for path in sorted(pair.rglob("metrics.jsonl")))
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(Problems) as error:
        report(pair, "-o", run / "metrics.jsonl", "--png", run / "checkpoints")
    assert str(error.value).count("is a part of the run") == 2
    with pytest.raises(RunError, match="is a part of the run"):
        cli.run(["mask", "show", "--png", str(run / "config.yaml")])
    with pytest.raises(RunError, match="is a part of the run"):
        cli.run(["schedule", "show", "--png", str(run / "config.yaml")])
    assert (run / "metrics.jsonl").read_bytes() == before


def test_an_unknown_layer_or_text_is_an_error(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has no layer 7"):
        report(pair, "-o", tmp_path / "a.html", "--layer", "7")
    with pytest.raises(TokenizerError, match="Ω"):
        report(pair, "-o", tmp_path / "a.html", "--text", "Ω")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_has_no_map(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("whole", "bare"):
        shutil.copytree(pair / "gpt", tmp_path / name)
    shutil.rmtree(tmp_path / "bare" / "checkpoints")
    report(tmp_path / "whole", tmp_path / "bare", "-o", tmp_path / "a.html")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "no attention map of bare: the run has no checkpoint yet",
        "no losses per token: bare: the run has no checkpoint yet",
    ]
    assert '"run":"bare","reason":"the run has no checkpoint yet"' in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_number_of_maps(sweep: Path, tmp_path: Path) -> None:
    for n_maps in (0, 2):
        report(sweep, "-o", tmp_path / "a.html", "--maps", str(n_maps))
        assert (tmp_path / "a.html").read_text(encoding="utf-8").count('"n_left_out":') == n_maps


def test_an_unreadable_run_is_an_error(pair: Path, tmp_path: Path) -> None:
    run = shutil.copytree(pair / "gpt", tmp_path / "run")
    (run / "config.yaml").write_text("[")
    with pytest.raises(RunError, match="this run cannot be read") as error:
        report(run, "-o", tmp_path / "a.html")
    assert "config.yaml is damaged" in error.value.hint


def test_missing_plotly_is_an_error(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(SettingsError, match="needs plotly, which is not installed") as error:
        report(pair, "-o", tmp_path / "a.html", "--maps", "0")
    assert error.value.hint.startswith("pip install 'matplotlib>=")


def test_png_files_are_written_too(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra nanolm[plot] is not installed")
    report(pair, "-o", tmp_path / "a.html", "--png", tmp_path / "pictures")
    lines = capsys.readouterr().out.splitlines()
    written = [Path(line.removeprefix("picture: ")) for line in lines[1:]]
    assert sorted(written) == sorted((tmp_path / "pictures").iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
