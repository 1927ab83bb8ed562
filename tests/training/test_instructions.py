"""Runs of dataset=instructions: learning to answer, and what reads the run."""

import json
import random
from pathlib import Path

import pytest

from nanolm.config.trainer import Sampling
from nanolm.inference.generate import generate
from nanolm.inference.load import load_run
from nanolm.runs.directory import RunDirectory
from nanolm.training.trainer import train
from tests.helpers import make_config, resumes_exactly

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Peru": "Lima", "Egypt": "Cairo"}


def write_capitals(path: Path, n: int = 120) -> Path:
    """Write questions about capitals; every third row asks two."""
    generator = random.Random(0)

    def row(number: int) -> dict[str, object]:
        first, second = generator.sample(sorted(CAPITALS), 2)
        if number % 3:
            return {"prompt": f"{first}?", "response": f"{CAPITALS[first]}."}
        turns = [("user", f"{first}?"), ("assistant", f"{CAPITALS[first]}.")]
        turns += [("user", f"{second}?"), ("assistant", f"{CAPITALS[second]}.")]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(n)))
    return path


OVERRIDES = (
    "dataset=instructions",
    "tokenizer=char",
    'dataset.template.user="Q{content}\n"',
    'dataset.template.assistant="A{content};\n"',
    "size.n_layers=2",
    "size.n_heads=2",
    "size.d_model=32",
    "size.context_length=32",
    "trainer.device=cpu",
    "trainer.batch_size=16",
    "trainer.sample_tokens=12",
    "optimizer.lr=1e-2",
    "logger=none",
)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling.documents, Sampling.windows])
def test_model_learns_to_answer(sampling: Sampling, tmp_path: Path) -> None:
    path = write_capitals(tmp_path / "rows.jsonl")
    config = make_config(*OVERRIDES, f"dataset.path={path}", "trainer.max_steps=200", "trainer.eval_every=100")
    config.trainer.sampling = sampling
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    outcome = train(config, run)
    loaded = load_run(str(run.path), device="cpu")
    for country, capital in CAPITALS.items():
        assert generate(loaded, f"{country}?", temperature=0) == f"{capital}."
    # Without the template, the markers of the template are generated as well.
    assert generate(loaded, "QPeru?\nA", temperature=0, raw=True, max_new_tokens=7) == "QPeru?\nALima.;\n"
    assert outcome.prompt.rstrip("?") in CAPITALS
    sample = json.loads(run.samples.read_text().splitlines()[-1])["text"]
    assert sample.startswith("Q")
    assert sample.endswith(";\n")
    baselines = run.read_summary().baseline_losses
    assert baselines is not None
    assert outcome.summary.final_val_loss < baselines["counted_bigram"]


def test_instructions_resume_exactly(tmp_path: Path) -> None:
    path = write_capitals(tmp_path / "rows.jsonl")
    overrides = (*OVERRIDES[:4], f"dataset.path={path}", "size.context_length=8")
    assert resumes_exactly(path, tmp_path, *overrides)
