"""What a user can get wrong ends with one clear message, exit status 2, and no folder that looks like a run."""

from pathlib import Path

import pytest

from tests.conftest import SMALL, Nanolm


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optimizer=adamx"], ["no optimizer is called 'adamx'", "did you mean adam?"]),
        (["trainer.max_step=3"], ["there is no setting 'trainer.max_step'", "did you mean trainer.max_steps?"]),
        (["+trainer.max_stepps=3"], ["there is no setting 'trainer.max_stepps'", "did you mean trainer.max_steps?"]),
        (["optimizer.lr=fast"], ["Value 'fast' of type 'str' could not be converted to Float", "optimizer.lr=fast"]),
        (["size.n_heads=3"], ["size.d_model 16 cannot be divided among size.n_heads 3 heads", "n_heads = 1, 2, 4"]),
        (["size.context_length=900"], ["the val split has", "needs 901", "size.context_length 900"]),
        (["dataset.path=missing.txt"], ["no file, folder or match of 'missing.txt'"]),
        (["dataset.path=empty.txt"], ["the text is empty", "empty.txt"]),
        (["dataset.path=latin1.txt"], ["byte 3 (0xe9) is not UTF-8", "latin1.txt, byte offset 3"]),
        (["dataset=tiny_shakespeare", "dataset.url=http://127.0.0.1:9/x"], ["cannot fetch", "dataset.path=FILE"]),
        (["trainer.device=cuda:77"], ["no device 'cuda:77'", "here are: cpu"]),
        (["plugins=[no_such_module]"], ["the plugin 'no_such_module' was not found"]),
        (["resume=nowhere"], ["there is no folder nowhere"]),
        (["--config-dir", "nowhere"], ["there is no folder nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_one_message_status_two_and_no_run(
    overrides: list[str], expected: list[str], nanolm: Nanolm, small_text: Path
) -> None:
    (nanolm.folder / "empty.txt").touch()
    (nanolm.folder / "latin1.txt").write_bytes("café".encode("latin1"))
    text = [] if any(word.startswith("dataset=") for word in overrides) else ["dataset=text"]
    path = [] if text == [] or any("dataset.path" in word for word in overrides) else [f"dataset.path={small_text}"]
    done = nanolm("train", *SMALL, *text, *path, *overrides)
    assert done.returncode == 2, done.stderr
    for part in expected:
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("nanolm: ")
    left = {entry.name for entry in nanolm.folder.rglob("*")}
    assert left - {"outputs"} == {"empty.txt", "latin1.txt"}


def test_a_run_with_bad_words_after_it(nanolm: Nanolm, small_text: Path) -> None:
    line = (*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=5", "hydra.run.dir=run")
    assert nanolm("train", *line).returncode == 0
    run = nanolm.folder / "run"
    done = nanolm("generate", run, "--prompt", "1 Zü")
    assert done.returncode == 2
    assert "2 characters that the tokenizer has never seen: 'Z' (U+005A), 'ü' (U+00FC)" in done.stderr
    for verb in ("generate", "evaluate"):
        prompt = ["--prompt", "1"] if verb == "generate" else []
        done = nanolm(verb, nanolm.folder, *prompt)
        assert done.returncode == 2
        assert "is not a run directory" in done.stderr
        assert str(run) in done.stderr, "the run that was meant is named"
    weights = run / "checkpoints" / "step-00000005" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    for arguments in (
        ["generate", run, "--prompt", "1"],
        ["evaluate", run],
        ["train", f"resume={run}", "trainer.max_steps=9"],
    ):
        done = nanolm(*arguments)
        assert done.returncode == 2
        assert "model.safetensors has been altered" in done.stderr
        assert "Traceback" not in done.stderr
