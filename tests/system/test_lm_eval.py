"""The command of docs/import_export.md for lm-eval: an exported run on a task that is defined here."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import REPOSITORY, Nanolm

pytestmark = pytest.mark.slow

# Models in the format of transformers need accelerate, too.
MISSING = [name for name in ("lm_eval", "accelerate", "transformers") if importlib.util.find_spec(name) is None]
CONTEXT = 64


def texts(shakespeare: Path, n: int) -> list[str]:
    """Return texts of at most one context, line ends inside and at the end included."""
    words = shakespeare.read_text(encoding="utf-8").split()
    found = [" ".join(words[6 * number : 6 * number + 6]).replace(" ", "\n", 1) for number in range(n)]
    assert max(map(len, found)) < CONTEXT
    return found


def write_jsonl(path: Path, rows: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return path


def command_of_the_docs() -> list[str]:
    """Return the arguments of the documented command."""
    page = (REPOSITORY / "docs" / "import_export.md").read_text(encoding="utf-8")
    block = re.search(r"^lm_eval ((?:.*\\\n)*.*)", page, re.MULTILINE)
    assert block is not None
    return block[1].replace("\\\n", " ").split()


def task_of_the_docs() -> dict[str, object]:
    """Return the settings of the documented task."""
    page = (REPOSITORY / "docs" / "import_export.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(task: .*?)```", page, re.DOTALL)
    assert block is not None
    return yaml.safe_load(block[1])


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install -e '.[lm-eval]')")
@pytest.mark.parametrize("model", ["gpt", "gpt2", "llama"])
def test_lm_eval_agrees_with_evaluate(model: str, shakespeare: Path, tmp_path: Path, own_cache: Path) -> None:
    nanolm = Nanolm(tmp_path, own_cache)
    train, val = texts(shakespeare, 400), texts(shakespeare, 460)[400:]
    write_jsonl(tmp_path / "train.jsonl", train)
    write_jsonl(tmp_path / "val.jsonl", val)
    trained = nanolm(
        *("train", "dataset=jsonl", "dataset.path=train.jsonl", "dataset.val_path=val.jsonl", "tokenizer=char"),
        *(f"model={model}", "size.n_layers=2", "size.n_heads=2", "size.d_model=32", f"size.context_length={CONTEXT}"),
        *("trainer.sampling=documents", "trainer.max_steps=40", "trainer.eval_every=40", "trainer.sample_tokens=0"),
        *("trainer.device=cpu", "logger=none", "hydra.run.dir=outputs/run"),
    )
    assert trained.returncode == 0, trained.stderr
    exported = nanolm("export", "outputs/run", "--to", "exports/run")
    assert exported.returncode == 0, exported.stderr
    ours = json.loads(nanolm("evaluate", "outputs/run", "--json").stdout)

    # As in nanolm, a line end follows every document but the last, and precedes every document.
    (tmp_path / "tasks").mkdir()
    write_jsonl(tmp_path / "tasks" / "plays.jsonl", [*(text + "\n" for text in val[:-1]), val[-1]])
    (tmp_path / "tasks" / "plays.yaml").write_text(yaml.safe_dump(task_of_the_docs()))
    completed = subprocess.run(
        [sys.executable, "-m", "lm_eval", *command_of_the_docs()],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "huggingface")},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert completed.returncode == 0, completed.stderr
    (results,) = (tmp_path / "results").rglob("*.json")
    theirs = json.loads(results.read_text())["results"]["plays"]
    assert theirs["bits_per_byte,none"] == pytest.approx(ours["bits_per_byte"], rel=1e-5)
    assert theirs["byte_perplexity,none"] == pytest.approx(2 ** ours["bits_per_byte"], rel=1e-4)
