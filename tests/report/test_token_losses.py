import shutil
from pathlib import Path

import pytest

from nanolm.analysis.collection import find
from nanolm.inference.evaluate import evaluate
from nanolm.inference.load import load_run
from nanolm.report.token_losses import compute
from tests.run_fixtures import make_run


def test_runs_are_scored_on_the_same_tokens(pair: Path, text: Path) -> None:
    found = compute(find([pair]), 4)
    assert found.problem == ""
    assert [each.run for each in found.runs] == ["bigram", "gpt"]
    # The text is short: all of its validation tokens but the first are scored.
    assert "".join(found.tokens) == text.read_text()[-len(found.tokens) :]
    for each in found.runs:
        exact = evaluate(load_run(str(pair / each.run), device="cpu"), stride=8)
        assert (len(each.losses), each.step) == (exact["tokens"], exact["step"])
        assert sum(each.losses) / len(each.losses) == pytest.approx(exact["loss"], abs=1e-4)


def test_why_there_are_no_losses(pair: Path, text: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "bytes", text, "model=bigram", "tokenizer=byte", "trainer.max_steps=2")
    found = compute(find([pair / "gpt", tmp_path / "bytes"]), 4)
    assert (found.runs, found.tokens) == ([], [])
    assert found.problem == "no two of these runs have the same validation tokens and comparable losses"
    shutil.copytree(pair, tmp_path / "pair")
    for path in (tmp_path / "pair").glob("*/config.yaml"):
        path.write_text(path.read_text().replace(str(text), str(tmp_path / "missing.txt")))
    problem = compute(find([tmp_path / "pair"]), 4).problem
    assert problem.startswith("bigram, gpt: ")
    assert "missing.txt" in problem


@pytest.mark.slow
def test_other_rows_of_the_same_text_are_not_compared(pair: Path, text: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "lines", text, "model=gpt", "trainer.sampling=lines", "trainer.max_steps=2")
    found = compute(find([pair / "bigram", tmp_path / "lines", pair / "gpt"]), 4)
    assert [each.run for each in found.runs] == ["bigram", "gpt"]
