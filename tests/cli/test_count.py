import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.config.checks import check
from nanolm.errors import SettingsError
from nanolm.model.totals import known_vocab_size
from tests.helpers import Nanolm, make_config

PLUGIN = """
import torch
from torch import nn
from nanolm.registry import MODELS

class Mine(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.inner = nn.Embedding(vocab_size, 4)
        self.outer = nn.Linear(4, vocab_size)
        self.again = nn.Linear(4, vocab_size, bias=False)
        self.again.weight = self.outer.weight

@MODELS.register("mine")
def mine(config, vocab_size):
    return Mine(vocab_size)

class Table(nn.Module):
    def fit(self, tokens):
        return 1

@MODELS.register("table")
def table(config, vocab_size):
    return Table()

@MODELS.register("curious")
def curious(config, vocab_size):
    return nn.Linear(1, int(torch.ones(1).item()))
"""


def test_gpt3_as_a_table(nanolm: Nanolm) -> None:
    done = nanolm("count", "experiment=gpt3")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    legend = "vocab_size V 50,257, d_model C 12,288, n_layers N 96, context_length T 2,048"
    assert legend.split() in rows
    assert ["attention", "4", "N", "C^2", "603,979,776", "57,982,058,496", "33.1%"] in rows
    assert ["head", "V", "C", "+", "V", "617,608,273", "0.4%"] in rows
    assert ["total,", "P", "175,217,149,009"] in rows
    assert ["training", "3", "forward", "1,076,373,430,272"] in rows
    assert ["optimizer,", "adamw", "8", "P", "1,401,737,192,072", "1.3", "TiB"] in rows
    assert "peak (est.)" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "175,223,784,799" in nanolm("count", "experiment=gpt3", "--vocab-size", "50527").stdout


def test_gpt2_as_json(nanolm: Nanolm) -> None:
    done = nanolm("count", "--json", "model=gpt2", "size=gpt2", "--vocab-size", "50257", "optimizer=sgd")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["size"]) == ("gpt2", "gpt2")
    assert found["sizes"] == {
        "vocab_size": 50_257,
        "d_model": 768,
        "n_layers": 12,
        "n_heads": 12,
        "n_kv_heads": 12,
        "context_length": 1024,
        "d_key": 64,
        "d_value": 64,
        "d_ff": 3072,
    }
    n_parameters = found["parameters"]["total"]
    assert n_parameters == 124_439_808
    for figures, total in ((found["parameters"], "total"), (found["flops_per_token"], "forward")):
        assert sum(part["amount"] for part in figures["parts"]) == figures[total]
    assert found["flops_per_token"]["training"] == 3 * found["flops_per_token"]["forward"]
    memory = found["memory_bytes"]
    assert {memory[key] for key in ("weights", "gradients", "optimizer")} == {4 * n_parameters}
    assert memory["activations_estimate"]["formula"] == "B T (64 N C + 12 C) + 4 V C + 268171352"


def test_bigram_table_is_square(nanolm: Nanolm) -> None:
    done = nanolm("count", "model=bigram", "tokenizer=byte")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["table", "V^2", "65,536", "100.0%"] in rows
    assert ["vocab_size", "V", "256"] in rows


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("byte", 256),
        ("gpt2", 50_257),
        ("bpe tokenizer.vocab_size=512", 512),
        ("unigram tokenizer.vocab_size=600", 600),
        ("sentencepiece", 4096),
        ("char", None),
        ("word", None),
        ("pretrained tokenizer.path=nowhere", None),
    ],
)
def test_vocab_size_known_from_the_settings(line: str, expected: int | None) -> None:
    config = make_config(*f"tokenizer={line}".split())
    assert check(config) == []
    assert known_vocab_size(config.tokenizer) == expected


@pytest.mark.parametrize("arguments", [["experiment=gpt3"], ["model=bigram", "--vocab-size", "9", "--json"]])
def test_count_does_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom nanolm.cli import main as cli\n"
        f"cli.run(['count', *{arguments!r}])\nprint([n for n in ('torch', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_all_mistakes_are_reported(nanolm: Nanolm) -> None:
    for arguments, expected in {
        ("model=gpt",): ["vocabulary size of tokenizer=char is unknown", "--vocab-size 65"],
        ("model=gtp",): ["no model is called 'gtp'", "did you mean gpt"],
        ("size.d_modl=3", "--vocab-size", "9"): ["no setting 'size.d_modl'", "did you mean size.d_model?"],
        ("--vocab-size", "0"): ["--vocab-size is 0"],
        ("model=ngram",): ["the model 'ngram' is a table whose size depends on its text", "summary.json has"],
        ("size.n_heads=3",): ["is not divisible by size.n_heads (3)", "--vocab-size 65"],
    }.items():
        done = nanolm("count", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert all(words in done.stderr for words in expected), done.stderr
        assert "Traceback" not in done.stderr


def test_a_plugin_model_is_counted_by_building_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_counted_models.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    command = ["count", "optimizer=adamw", "plugins=[my_counted_models]", "--vocab-size", "10"]
    assert cli.run([*command, "model=mine", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(part["part"], part["amount"]) for part in found["parameters"]["parts"]] == [("inner", 40), ("outer", 50)]
    assert found["parameters"]["total"] == 90
    assert found["flops_per_token"]["training"] is None
    assert found["memory_bytes"]["optimizer"] == 8 * 90
    assert found["memory_bytes"]["activations_estimate"] is None
    assert cli.run([*command, "model=mine"]) == 0
    assert "no formula for the FLOPs and activations of a plugin's model" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="the model 'table' is a table whose size depends on its text"):
        cli.run([*command, "model=table"])
    with pytest.raises(SettingsError, match=r"'curious' has no formula, and cannot be built on the meta device"):
        cli.run([*command, "model=curious"])


def test_tokens_and_flops_of_a_run_follow_its_schedules(capsys: pytest.CaptureFixture[str]) -> None:
    schedules = ["trainer.batch_size_schedule=[[0.5,4]]", "trainer.context_length_schedule=[[0.25,32]]"]
    command = [
        "count",
        "--vocab-size",
        "65",
        "size=tiny",
        "size.context_length=64",
        "trainer.batch_size=12",
        *schedules,
    ]
    assert cli.run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    run, memory = found["run"], found["memory_bytes"]
    assert (run["steps"], run["tokens"]) == (1000, 250 * 4 * 32 + 250 * 4 * 64 + 500 * 12 * 64)
    assert [(stage["start"], stage["batch_size"], stage["context_length"]) for stage in run["batches"]] == [
        (0, 4, 32),
        (250, 4, 64),
        (500, 12, 64),
    ]
    assert 0.9 < run["flops"] / (run["tokens"] * found["flops_per_token"]["training"]) < 1
    assert (memory["batch_size"], memory["context_length"]) == (12, 64)
    assert cli.run([*command, "trainer.sampling=lines"]) == 0
    shown = capsys.readouterr().out
    assert "tokens and padding per step" in shown
    assert [line.split()[:3] for line in shown.splitlines() if line.startswith(" 4 x ")] == [
        ["4", "x", "32"],
        ["4", "x", "64"],
    ]
