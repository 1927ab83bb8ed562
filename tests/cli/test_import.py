"""`nanolm import`, and the commands that read an imported run."""

import json
from pathlib import Path

import pytest

import nanolm
from nanolm.cli import main as cli
from nanolm.errors import NanolmError
from nanolm.runs.directory import RunDirectory
from tests.helpers import mostly_slow
from tests.interop.hf_folders import GPT2, write_model


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an imported GPT-2 of context length 12, as outputs/gpt2, and its source."""
    folder = tmp_path_factory.mktemp("outputs")
    nanolm.import_model(write_model(folder / "source", GPT2), folder / "runs" / "gpt2", context_length=12)
    return folder / "runs"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a small text."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("To be, or not to be, that is the question.\n" * 40)
    return ["dataset=text", f"dataset.path={path}"]


@pytest.mark.slow
def test_import_reports_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_model(tmp_path / "model", GPT2)
    assert cli.run(["import", str(source), "--to", str(tmp_path / "run"), "--context-length", "12"]) == 0
    output = capsys.readouterr()
    assert output.out == f"imported GPT2LMHeadModel with 3,912 parameters and 257 tokens to {tmp_path / 'run'}\n"
    assert output.err == "nanolm: the context is cropped, from 16 to 12 tokens\n"


def test_import_reports_mistakes_in_its_options() -> None:
    with pytest.raises(NanolmError) as caught:
        cli.run(["import", "model", "--context-length", "0"])
    assert "--context-length is '0'" in str(caught.value) or "--context-length is 0" in str(caught.value)
    assert "--to" in str(caught.value)


def test_imported_run_generates(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["generate", str(outputs / "gpt2"), "--prompt", "To be", "--max-new-tokens", "9"]) == 0
    assert capsys.readouterr().out.startswith("To be")


@pytest.mark.parametrize("line", mostly_slow(["resume={}", "hydra.run.dir={} resume=auto"], quick=["resume={}"]))
def test_imported_run_has_no_training_to_resume(line: str, outputs: Path) -> None:
    with pytest.raises(NanolmError, match=r"was imported: there is no training to resume[\s\S]*fork=true dataset="):
        cli.run(["train", *[word.format(outputs / "gpt2") for word in line.split()]])


@pytest.mark.slow
def test_imported_run_has_no_text_to_fork(outputs: Path) -> None:
    with pytest.raises(NanolmError, match="the model was imported, and has no text to train on"):
        cli.run(["train", f"resume={outputs / 'gpt2'}", "fork=true"])


@pytest.mark.slow
def test_imported_run_is_evaluated_on_a_named_text(
    outputs: Path, dataset: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(outputs / "gpt2")
    with pytest.raises(NanolmError, match=r"has no text of its own[\s\S]*dataset=tiny_shakespeare"):
        cli.run(["evaluate", run])
    with pytest.raises(NanolmError, match=r"evaluating changes the dataset only, and not optimizer\.lr"):
        cli.run(["evaluate", run, *dataset, "optimizer.lr=1"])
    assert cli.run(["evaluate", run, *dataset, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["step"], result["tokens"], result["lossless"]) == (0, 171, True)
    assert 4 < result["loss"] < 8


@pytest.mark.slow
def test_imported_run_is_forked_with_its_tokenizer(outputs: Path, dataset: list[str]) -> None:
    fork = outputs / "fork"
    small = ["trainer.max_steps=20", "trainer.batch_size=4", "trainer.device=cpu", "logger=none", "optimizer.lr=0.01"]
    command = ["train", f"resume={outputs / 'gpt2'}", "fork=true", *dataset, *small, f"hydra.run.dir={fork}"]
    assert cli.run(command) == 0
    summary = RunDirectory(fork).read_summary()
    assert summary.tokenizer == RunDirectory(outputs / "gpt2").read_summary().tokenizer
    assert (summary.step, summary.is_imported, summary.imported) == (20, False, None)
    assert (fork / "tokenizer.json").read_bytes() == (outputs / "gpt2" / "tokenizer.json").read_bytes()
    assert cli.run(["train", f"resume={fork}", "trainer.max_steps=22"]) == 0


@pytest.mark.slow
def test_every_command_reads_an_imported_run(outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(outputs / "gpt2")
    for command in (["checkpoints", run], ["runs", run], ["compare", run], ["diff", run, run]):
        assert cli.run(command) == 0, command
    shown = capsys.readouterr().out
    assert "intact" in shown
    assert cli.run(["report", run, "-o", str(tmp_path / "report.html")]) == 0
    again = f"--to {run} --context-length 12"
    assert again in (tmp_path / "report.html").read_text()
    assert cli.run(["export", run, "--to", str(tmp_path / "exported")]) == 0
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "imported from" in card
    assert "nanolm import" in card
    nanolm.import_model(tmp_path / "exported", tmp_path / "back")
    weights = Path("checkpoints") / "step-00000000" / "model.safetensors"
    assert (tmp_path / "back" / weights).read_bytes() == (outputs / "gpt2" / weights).read_bytes()
