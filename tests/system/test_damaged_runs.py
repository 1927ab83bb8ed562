"""Damage the files of a run at random: no command fails, hangs, follows a link or loses the good runs beside it."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import SMALL, Nanolm

SECRET = "the content of a private file"
VALUES = (
    "null",
    "[]",
    "{}",
    '"20"',
    "true",
    "-1",
    "1e400",
    "9" * 400,
    "NaN",
    '"\\ud800"',
    "[[[[]]]]",
    "1.5",
    "2020-01-01",
)


def flip_bytes(path: Path, random: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"x")
    for _ in range(random.choice((1, 1, 8, 64))):
        content[random.randrange(len(content))] = random.randrange(256)
    path.write_bytes(content)


def cut(path: Path, random: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content) + 1)])


def insert_bytes(path: Path, random: random.Random) -> None:
    content = path.read_bytes()
    at = random.randrange(len(content) + 1)
    inserted = random.choice((b"\0", b"\n", b"{", b"\xff\xfe", b"\x1b[2J", b"&a [*a]", random.randbytes(20)))
    path.write_bytes(content[:at] + inserted + content[at:])


def replace_value(path: Path, random: random.Random) -> None:
    """Replace the value of a key, in JSON or YAML."""
    text = path.read_bytes().decode("latin1")
    values = list(re.finditer(r"(?<=: )[^\n,}]+", text))
    if values:
        value = random.choice(values)
        text = text[: value.start()] + random.choice(VALUES) + text[value.end() :]
    path.write_bytes(text.encode("latin1"))


def move_lines(path: Path, random: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    random.shuffle(lines)
    path.write_bytes(b"".join(lines[: random.randrange(len(lines) + 1)] + lines[:2]))


def nest(path: Path, random: random.Random) -> None:
    path.write_bytes(random.choice((b"[", b'{"a":', b"- ", b"a: [")) * random.choice((50, 3000, 200_000)))


def bomb(path: Path, random: random.Random) -> None:
    names = "abcdefghi"
    lines = [f"a: &a [{', '.join(['x'] * 10)}]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in itertools.pairwise(names)]
    path.write_text("\n".join(lines))


def grow(path: Path, random: random.Random) -> None:
    with path.open("ab") as file:
        file.write(random.choice((b" ", b"\n", b"x", b"a: b\n")) * random.choice((100, 2_000_000)))


def remove(path: Path, random: random.Random) -> None:
    path.unlink()


def make_folder(path: Path, random: random.Random) -> None:
    path.unlink()
    path.mkdir()


def make_fifo(path: Path, random: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def make_link(path: Path, random: random.Random) -> None:
    path.unlink()
    path.symlink_to(random.choice(("../../secret", "/dev/zero", path.name, ".", "../good/" + path.name)))


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    kind.__name__: kind
    for kind in (
        flip_bytes,
        cut,
        insert_bytes,
        replace_value,
        move_lines,
        nest,
        bomb,
        grow,
        remove,
        make_folder,
        make_fifo,
        make_link,
    )
}

# Commands that read runs, in the folder that holds `runs/good` and `runs/bad`. Resuming comes last: it writes.
COMMANDS = (
    ("runs", "runs"),
    ("runs", "runs", "--json"),
    ("compare", "runs", "--json"),
    ("diff", "runs/good", "runs/bad"),
    ("report", "runs", "-o", "report.html"),
    ("checkpoints", "runs/bad"),
    ("evaluate", "runs/bad"),
    ("train", "resume=runs/bad", "trainer.max_steps=22", "logger=none"),
)
LISTING = {"runs", "compare", "report"}

# CPU seconds, and bytes of memory on top of what the imports take.
LIMITS = {"NANOLM_TEST_CPU_SECONDS": "5", "NANOLM_TEST_MEMORY": str(2**30)}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in `runs/good`, and a private file."""
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "secret").write_text(SECRET)
    text = folder / "book.txt"
    text.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}; {n % 7} is left.\n" for n in range(150)))
    steps = ("trainer.max_steps=20", "trainer.eval_every=10", "trainer.save_every=5", "trainer.sample_tokens=8")
    line = (*SMALL, "dataset=text", f"dataset.path={text}", "model=bigram", *steps, "hydra.run.dir=runs/good")
    done = Nanolm(folder, folder / "cache")("train", *line)
    assert done.returncode == 0, done.stderr
    return folder


def files_of(run: Path) -> list[str]:
    return sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())


def require_sane(folder: Path, *command: str) -> None:
    """Run a command, and require a regular end without a traceback, a leak or a lost good run."""
    nanolm = Nanolm(folder, folder / "cache")
    nanolm.environment |= LIMITS
    done = nanolm(*command, timeout=100)
    told = f"nanolm {' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.returncode in (0, 1, 2), told
    assert "Traceback" not in done.stderr, told
    assert "memory" not in done.stderr, told
    assert SECRET not in done.stdout + done.stderr, told
    output = done.stdout
    if command[0] == "report" and done.returncode == 0:
        output = (folder / "report.html").read_text()
        assert SECRET not in output, told
    if command[0] in LISTING:
        assert done.returncode == 0, told
        assert "good" in output, told
    if "--json" in command:
        json.loads(done.stdout, parse_constant=pytest.fail)


def damage_and_run(original: Path, damages: list[tuple[int, str, int]]) -> None:
    bad = original / "runs" / "bad"
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(original / "runs" / "good", bad)
    files = files_of(bad)
    for number, kind, seed in damages:
        path = bad / files[number % len(files)]
        if path.is_file() and not path.is_symlink():
            DAMAGE[kind](path, random.Random(seed))
    try:
        for command in COMMANDS:
            require_sane(original, *command)
    except AssertionError as error:
        named = [(files[number % len(files)], kind, seed) for number, kind, seed in damages]
        raise AssertionError(f"damage: {named}\n{error}") from error


damages = st.lists(
    st.tuples(st.integers(0, 99), st.sampled_from(sorted(DAMAGE)), st.integers(0, 2**32 - 1)), min_size=1, max_size=3
)
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@settings(same_folder, max_examples=3, derandomize=True)
@given(damages=damages)
def test_damaged_files_end_in_a_message(original: Path, damages: list[tuple[int, str, int]]) -> None:
    damage_and_run(original, damages)


@pytest.mark.slow
@settings(same_folder, max_examples=35)
@given(damages=damages)
def test_many_damaged_files_end_in_a_message(original: Path, damages: list[tuple[int, str, int]]) -> None:
    damage_and_run(original, damages)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_each_damage_to_each_file(original: Path, kind: str) -> None:
    for number in range(len(files_of(original / "runs" / "good"))):
        damage_and_run(original, [(number, kind, number)])
