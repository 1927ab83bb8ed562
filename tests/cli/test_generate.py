import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.errors import SettingsError
from nanolm.runs.directory import RunDirectory
from tests.helpers import LONG_RUN, Nanolm, has_reached_step, kill_process_group, wait_until


def generated(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.run(["generate", str(run), "--prompt", "12 and", *options]) == 0
    return capsys.readouterr().out


def test_generate_prints_prompt_and_continuation(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = generated(trained, capsys, "--max-new-tokens", "10")
    assert text.startswith("12 and")
    assert len(text) == len("12 and") + 10 + 1
    assert text == generated(trained, capsys, "--max-new-tokens", "10", "--no-cache")
    assert text != generated(trained, capsys, "--max-new-tokens", "10", "--seed", "1")


def test_generate_greedily(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = generated(trained, capsys, "--temperature", "0", "--stride", "4")
    assert greedy == generated(trained, capsys, "--top-k", "1", "--seed", "5", "--stride", "4")


def test_generate_reports_mistakes(trained: Path) -> None:
    with pytest.raises(SettingsError, match="--stride is 17"):
        cli.run(["generate", str(trained), "--prompt", "1", "--stride", "17"])


def test_json_has_the_tokens_and_their_probabilities(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(generated(trained, capsys, "--max-new-tokens", "4", "--json", "--alternatives", "2"))
    assert record["prompt"] == "12 and"
    assert record["starts_from"] is None
    assert record["finish"] == "length"
    assert record["text"] == "".join(record["token_texts"])
    assert "12 and" + record["text"] + "\n" == generated(trained, capsys, "--max-new-tokens", "4")
    assert {len(record[key]) for key in ("tokens", "token_texts", "log_probabilities", "alternatives")} == {4}
    assert all(value <= 0 for value in record["log_probabilities"])
    assert record["alternatives"][0][0].keys() == {"id", "text", "probability"}
    assert record["tokens_per_second"] > 0
    assert record["seconds"] >= record["first_token_seconds"] > 0
    samples = json.loads(generated(trained, capsys, "--json", "--samples", "2", "--max-new-tokens", "4"))["samples"]
    assert [sample["seed"] for sample in samples] == [0, 1]
    assert samples[0]["tokens"] == record["tokens"]


def test_samples_and_log_probabilities_are_printed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = generated(trained, capsys, "--samples", "2", "--logprobs", "--max-new-tokens", "3", "--temperature", "0")
    first, second = text.split("--- sample 2, seed 1 ---\n")
    assert first.startswith("--- sample 1, seed 0 ---\n12 and")
    assert second.startswith("12 and")
    assert second.rstrip().endswith("total of 3 tokens")


def test_two_runs_are_printed_side_by_side(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = generated(trained, capsys, "--compare", str(trained), "--max-new-tokens", "60").splitlines()
    assert max(map(len, lines)) <= 60
    halves = [(line[:29].rstrip(), line[31:]) for line in lines]
    assert all(left == right for left, right in halves)
    runs = json.loads(generated(trained, capsys, "--compare", str(trained), "--json", "--stop", "."))["runs"]
    assert runs[0]["tokens"] == runs[1]["tokens"]


def test_an_empty_prompt_says_what_it_starts_from(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["generate", str(trained), "--max-new-tokens", "5"])
    output, errors = capsys.readouterr()
    assert len(output) == 6
    assert errors == "nanolm: the prompt is empty: the text starts from a line end\n"


def test_prompts_are_read_in_a_loop(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("12 and\nQ\n13"))
    assert cli.run(["generate", str(trained), "--interactive", "--max-new-tokens", "5"]) == 0
    output, errors = capsys.readouterr()
    assert "12 and" in output
    assert "13" in output
    assert "not in the tokenizer's vocabulary: 'Q'" in errors


def test_all_mistakes_of_generate_are_reported_at_once(trained: Path) -> None:
    options = ["--top-k", "0", "--top-p", "1.5", "--min-p", "2", "--repetition-penalty", "0", "--stop", ""]
    with pytest.raises(SettingsError) as caught:
        cli.run(["generate", str(trained), "--prompt", "1", *options, "--samples", "0"])
    for option in ("--top-k is 0", "--top-p is 1.5", "--min-p is 2", "--repetition-penalty is 0", "--stop is empty"):
        assert option in str(caught.value)
    with pytest.raises(SettingsError, match="--interactive and --watch exclude each other"):
        cli.run(["generate", str(trained), "--interactive", "--watch", "--json"])


def test_watching_a_run_that_has_ended_writes_once(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = generated(trained, capsys, "--watch", "--max-new-tokens", "4")
    assert text.startswith("--- step 30 ---\n12 and")
    assert text.count("---\n") == 1


@pytest.mark.slow
def test_watch_follows_a_training_run(nanolm: Nanolm, text: Path) -> None:
    run = nanolm.folder / "run"
    training = nanolm.start("train", *LONG_RUN, f"dataset.path={text}", f"hydra.run.dir={run}")
    try:
        wait_until(lambda: has_reached_step(RunDirectory(run), 50), training)
        watching = nanolm("generate", run, "--watch", "--max-new-tokens", "4", timeout=300)
        assert watching.returncode == 0, watching.stderr
        steps = [int(step) for step in re.findall(r"--- step (\d+) ---", watching.stdout)]
        assert len(steps) >= 2
        assert steps == sorted(steps)
        assert steps[-1] == 600
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            kill_process_group(training)


@pytest.mark.slow
def test_the_prompt_loop_works_on_a_terminal(trained: Path) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "nanolm", "generate", str(trained), "--interactive", "--max-new-tokens"]
    process = subprocess.Popen(
        [*command, "100000"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    seen = ""

    def read_until(expected: str) -> None:
        nonlocal seen
        end = time.monotonic() + 120
        while expected not in seen:
            assert time.monotonic() < end, seen
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 65536).decode()

    try:
        read_until("Ctrl-D leaves")
        read_until("> ")
        seen = ""
        os.write(master, b"12 and\n")
        read_until("12 and\r\n12 and")
        # The text appears as it grows, and Ctrl-C ends it.
        os.write(master, b"\x03")
        read_until("\n> ")
        os.write(master, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
