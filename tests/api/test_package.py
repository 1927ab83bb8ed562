"""`import nanolm`: what it offers, and when it imports the rest."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import nanolm
from tests.helpers import REPOSITORY

SCRIPT = """
import nanolm

run = nanolm.train("model=gpt", "dataset=tiny_shakespeare", max_steps=500)
loss: float | None = run.summary.best_val_loss
lr: float = run.config.optimizer.lr
text: str = run.generate("To be", max_new_tokens=10, temperature=0.8, top_p=None, stop="\\n")
texts: list[str] = run.generate(["To be", "or"], seed=1)
several: list[str] = run.generate("To be", samples=3)
for piece in run.stream("To be", top_k=40):
    print(piece, end="")
for step in nanolm.training("model=bigram", max_steps=10):
    if step.loss < 2.0 and step.lr > 0:
        print(step.number, step.model, step.batch[0].inputs_BxT.shape)
        break
runs: list[nanolm.Run] = nanolm.sweep("model=bigram,gpt2", "optimizer.lr=1e-3,3e-3")
comparison = nanolm.compare(runs, by="model", metric=["best_val_loss"])
print(comparison.rows[0].estimates["best_val_loss"].mean, comparison.to_markdown())
page = nanolm.report(runs, "report.html").read_text()
total: int = nanolm.count("model=gpt2", "size=gpt2")["parameters"]["total"]
weights = run.activations("To be", layers=[0])["blocks.0.attention.weights"].sum(dim=-1)
fork: nanolm.Run = nanolm.load("outputs/RUN", checkpoint=100).fork("optimizer.lr=1e-4", max_steps=1000)
bits: float = fork.evaluate("val")["bits_per_byte"]
try:
    fork.resume(max_steps=2000)
except nanolm.errors.NanolmError as error:
    print(error.hint)
"""


def test_import_is_lazy_and_lists_all_names() -> None:
    code = "import sys, nanolm; print('torch' in sys.modules, 'hydra' in sys.modules, *dir(nanolm))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    has_torch, has_hydra, *names = done.stdout.split()
    assert (has_torch, has_hydra) == ("False", "False")
    assert set(nanolm.__all__) <= set(names)
    for name in nanolm.__all__:
        assert getattr(nanolm, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = nanolm.trian  # type: ignore[attr-defined]


def test_types_and_lazy_imports_have_the_same_names() -> None:
    tree = ast.parse((REPOSITORY / "nanolm" / "__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.asname for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(nanolm.__all__) == set(nanolm._MODULES)


def test_packages_that_can_be_called_have_the_signature_of_their_function() -> None:
    from nanolm.api import analysis, training

    assert inspect.signature(nanolm.training) == inspect.signature(training.training)
    assert inspect.signature(nanolm.report) == inspect.signature(analysis.report)


@pytest.mark.slow
def test_script_of_a_user_passes_mypy_strict(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "mypy.ini").write_text("[mypy]\n")
    assert (REPOSITORY / "nanolm" / "py.typed").exists()
    # As in an installed package, whose own errors are not shown.
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "script.py"]
    environment = {"MYPYPATH": str(REPOSITORY), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (tmp_path / "script.py").write_text(SCRIPT + "\nrun.generate(3)\nnanolm.train(1)\n")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.count("error:") == 2, done.stdout
