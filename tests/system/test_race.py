"""scripts/race.py: the stand-in for nanoGPT here has the files, the flags and the order of calls of its train.py."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from nanolm.compose import compose_command
from nanolm.data.tokens.stream import Stream
from nanolm.model.build import build
from nanolm.training.precision import NumberFormat
from nanolm.training.validation import exact_loss
from tests.helpers import REPOSITORY, make_config, randomize_weights

SCRIPT = REPOSITORY / "scripts" / "race.py"

CONFIGURATOR = """
import sys
for argument in sys.argv[1:]:
    if "=" in argument:
        key, value = argument.removeprefix("--").split("=")
        globals()[key] = type(globals()[key])(eval(value) if value != "cpu" else value)
    else:
        exec(open(argument).read())
"""
TRAIN = """
import os
import numpy as np
import torch
from model import Table
dataset, out_dir, device, compile, always_save_checkpoint = "?", "out", "cuda", True, False
eval_interval, eval_iters, log_interval, block_size, batch_size = 1, 1, 1, 1, 1
n_layer, n_head, n_embd, max_iters, lr_decay_iters, warmup_iters, dropout = 1, 1, 1, 1, 1, 1, 0.0
exec(open("configurator.py").read())
config = {"dataset": dataset, "block_size": block_size}
os.makedirs(out_dir, exist_ok=True)
torch.manual_seed(1337)
raw_model = Table()
data = torch.from_numpy(np.fromfile(os.path.join("data", dataset, "train.bin"), dtype=np.uint16).astype(np.int64))
optimizer = torch.optim.SGD(raw_model.parameters(), lr=50.0)
for iter_num in range(max_iters + 1):
    if iter_num % eval_interval == 0 and iter_num > 0 and always_save_checkpoint:
        checkpoint = {"config": config, "iter_num": iter_num, "best_val_loss": torch.tensor(1.5)}
        torch.save(checkpoint, os.path.join(out_dir, "ckpt.pt"))
    starts = torch.randint(len(data) - block_size, (batch_size,))
    x = torch.stack([data[s : s + block_size] for s in starts])
    y = torch.stack([data[s + 1 : s + 1 + block_size] for s in starts])
    optimizer.zero_grad()
    raw_model(x, y)[1].backward()
    optimizer.step()
"""
MODEL = """
import torch
class Table(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(65, 65)
    def forward(self, x, y):
        logits = self.table(x)
        return logits, torch.nn.functional.cross_entropy(logits.view(-1, 65), y.view(-1))
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")


@pytest.fixture
def race(scripts: None) -> ModuleType:
    import race

    return race


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "train_shakespeare_char.py").write_text('dataset = "shakespeare_char"\n')
    for name, code in (("train.py", TRAIN), ("model.py", MODEL), ("configurator.py", CONFIGURATOR)):
        (folder / name).write_text(code)
    return folder


def test_exact_loss_of_a_checkout_equals_that_of_nanolm(scripts: None) -> None:
    import nanogpt_checkout

    config = make_config("experiment=nanogpt_cpu", "size.n_layers=1", "size.d_model=16", "size.context_length=8")
    model = build(config, 65).eval()
    randomize_weights(model)

    class Checkout(nn.Module):
        """The interface of nanoGPT's model."""

        def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, None]:
            assert inputs.shape == targets.shape
            return model(inputs), None

    for n_tokens in (9, 80, 81, 85, 700):
        tokens = np.random.default_rng(n_tokens).integers(0, 65, n_tokens).astype(np.uint16)
        ours = exact_loss(
            model,
            Stream(tokens, scored_bytes=n_tokens - 1),
            context_length=8,
            stride=8,
            vocab_size=65,
            device=torch.device("cpu"),
            number_format=NumberFormat(config.trainer.precision, torch.device("cpu")),
        )
        assert nanogpt_checkout.exact_loss(Checkout(), tokens, 8, batch_size=4) == pytest.approx(ours, abs=1e-6)


def test_data_of_a_text_is_that_of_prepare_py(scripts: None, tmp_path: Path) -> None:
    import nanogpt_checkout

    text = "abracadabra, said she"
    nanogpt_checkout.write_data(text, tmp_path / "data")
    meta = pickle.loads((tmp_path / "data" / "meta.pkl").read_bytes())  # noqa: S301  written by the line before
    assert meta["vocab_size"] == len(set(text)) == len(meta["itos"]) == len(meta["stoi"])
    parts = [np.fromfile(tmp_path / "data" / f"{split}.bin", dtype=np.uint16) for split in ("train", "val")]
    assert [len(part) for part in parts] == [18, 3]
    assert "".join(meta["itos"][token] for part in parts for token in part.tolist()) == text
    assert sorted(meta["stoi"]) == list(meta["stoi"])


def test_race_reports_all_mistakes_before_it_starts(
    race: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.py").touch()
    arguments = ["--nanogpt", str(tmp_path), "--text", str(tmp_path / "none.txt"), "--seeds", "0"]
    assert race.main([*arguments, "-o", str(tmp_path / "made" / "race")]) == 2
    errors = capsys.readouterr().err
    assert "--seeds (0) and --steps (2000) must be at least 1" in errors
    assert f"{tmp_path} is not a checkout of nanoGPT: no train.py, no configurator.py" in errors
    assert "git clone https://github.com/karpathy/nanoGPT" in errors
    assert "there is no file" in errors
    assert "--text FILE" in errors
    assert race.main(["--only", "nanoGPT", "--text", str(tmp_path / "none.txt")]) == 2
    assert "add --nanogpt CHECKOUT" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]


def test_race_table_has_means_and_paired_ratios(race: ModuleType) -> None:
    from race_report import NANOGPT, Point, Result, table

    def result(run: str, seed: int, *evaluations: tuple[int, float, float]) -> Result:
        return Result(
            run, seed, tuple(Point(tokens, tokens, seconds, loss, None) for tokens, seconds, loss in evaluations)
        )

    results = [
        result(NANOGPT, 1, (1000, 50.0, 2.0), (2000, 100.0, 1.8)),
        result("shakespeare_sprint", 1, (300, 5.0, 1.95), (400, 10.0, 1.88)),
        result(NANOGPT, 2, (1000, 50.0, 2.0), (2000, 90.0, 1.9)),
        result("shakespeare_sprint", 2, (300, 5.0, 1.95), (400, 15.0, 1.87)),
        result("nanogpt_cpu", 1, (2000, 80.0, 1.9)),
    ]
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in table(results, 1.886).splitlines()
    }
    assert rows[NANOGPT] == [
        "2",
        "1 of 2 reach it; 2,000",
        "1 of 2 reach it; 100.0",
        "",
        "1.8500 ± 0.0707",
        "",
        "2,000",
    ]
    sprint = ["2", "400", "12.5 ± 3.5", "at least 8.0 ± 2.8 times", "1.8750 ± 0.0071", "", "400"]
    assert rows["`shakespeare_sprint`"] == sprint
    assert rows["`nanogpt_cpu`"] == ["1", "not reached", "not reached", "", "1.9000", "", "2,000"]
    assert "1.886 after 400 tokens and 10.0 s" in results[1].describe(1.886)
    assert "1.886 not reached; val loss 1.9000" in results[2].describe(1.886)


def test_race_has_the_budget_of_nanogpt(race: ModuleType) -> None:
    config = compose_command(["experiment=nanogpt_cpu"]).config
    assert (config.trainer.max_steps, config.trainer.eval_every) == (race.BUDGET, race.eval_every(race.BUDGET))
    assert config.trainer.batch_size * config.size.context_length == race.TOKENS_PER_STEP
    assert (race.eval_every(500), race.eval_every(30)) == (250, 30)


@pytest.mark.slow
def test_race_runs_pairs_and_writes_table_and_picture(checkout: Path, shakespeare: Path, tmp_path: Path) -> None:
    arguments = ["--nanogpt", str(checkout), "--text", str(shakespeare), "--steps", "2", "--seeds", "2"]
    arguments += ["--only", "nanoGPT", "shakespeare_sprint", "--target", "4.5", "-o", str(tmp_path / "docs" / "race")]
    before = sorted(checkout.rglob("*"))
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert sorted(checkout.rglob("*")) == before, "the checkout is not changed"
    found = json.loads((tmp_path / "docs" / "race.json").read_text())
    order = ["nanoGPT", "shakespeare_sprint", "shakespeare_sprint", "nanoGPT"]
    assert [(result["run"], result["seed"]) for result in found["results"]] == list(
        zip(order, (1, 1, 2, 2), strict=True)
    )
    assert found["budget_tokens"] == 2 * 768
    theirs = [result["points"] for result in found["results"] if result["run"] == "nanoGPT"]
    assert theirs[0][0]["loss"] != theirs[1][0]["loss"], "the seeds differ"
    for (point,) in theirs:
        assert (point["step"], point["tokens"], point["estimate"]) == (2, 1536, 1.5)
        assert 0 < point["seconds"] < 500
    page = (tmp_path / "docs" / "race.md").read_text()
    assert "| `shakespeare_sprint` | 2 | 1,536 |" in page
    assert "- threads: " in page
    assert (tmp_path / "docs" / "images" / "race.png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout.count("seed ") >= 4


@pytest.mark.slow
def test_race_shows_the_output_of_a_failing_run(checkout: Path, shakespeare: Path, tmp_path: Path) -> None:
    (checkout / "model.py").write_text("raise RuntimeError('this checkout is broken')\n")
    arguments = ["--nanogpt", str(checkout), "--text", str(shakespeare), "--only", "nanoGPT", "--steps", "2"]
    command = [sys.executable, str(SCRIPT), *arguments, "-o", str(tmp_path / "race")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "this checkout is broken" in done.stderr
    assert done.stderr.splitlines()[0].startswith("race: ")
