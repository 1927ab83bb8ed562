from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.errors import NanolmError, RunError, SettingsError


def test_export_prints_step_and_folder(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out"
    assert cli.run(["export", str(trained), "--to", str(target), "--checkpoint", "last", "--dtype", "bfloat16"]) == 0
    output = capsys.readouterr()
    assert output.out == f"exported step 30 to {target}\n"
    assert output.err == ""
    assert (target / "model.safetensors").is_file()


def test_export_prints_remarks(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nanolm.interop import export as module

    tokenizer_files = module.tokenizer_files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "tokenizer_files", lambda *given: (tokenizer_files(*given)[0], ["a remark"]))
        cli.run(["export", str(trained), "--to", str(tmp_path / "out")])
    assert capsys.readouterr().err == "nanolm: a remark\n"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), "--to"),
        (("--to", ""), "--to is empty"),
        (("--to", "x", "--format", "onnx"), "onnx"),
        (("--to", "x", "--dtype", "int8"), "int8"),
        (("--to", "x", "--weights", "raw"), "raw"),
        (("--to", "x", "--checkpoint", "newest"), "--checkpoint is 'newest'"),
        (("--to", "x", "--device", "cpu"), "--device"),
    ],
)
def test_export_reports_mistakes(options: tuple[str, ...], found: str, trained: Path) -> None:
    with pytest.raises(SettingsError) as error:
        cli.run(["export", str(trained), *options])
    assert found in str(error.value)


def test_export_refuses_other_folders(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        cli.run(["export", str(tmp_path), "--to", str(tmp_path / "out")])
    with pytest.raises(NanolmError, match="is a part of the run"):
        cli.run(["export", str(trained), "--to", str(trained / "checkpoints" / "out")])
    assert list(tmp_path.iterdir()) == []
