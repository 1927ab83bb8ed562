"""The examples in CONTRIBUTING.md run as they are printed."""

import re
import shlex
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, SMALL, Nanolm

PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
MODULES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, flags=re.DOTALL))
EXPERIMENTS = dict(re.findall(r"`(mine/\S+\.yaml)`:\n\n```yaml\n(.*?)```", PAGE, flags=re.DOTALL))
COMMANDS = re.findall(r"^nanolm (train .*(?:plugins|config-dir).*)$", PAGE, flags=re.MULTILINE)


def test_page_has_examples_of_every_kind() -> None:
    assert set(MODULES) == {"my_masks.py", "my_optimizers.py", "my_tokenizers.py", "my_models.py"}
    assert len(COMMANDS) == 4
    assert EXPERIMENTS


@pytest.mark.parametrize("command", COMMANDS)
def test_example_trains(command: str, nanolm: Nanolm, small_text: Path) -> None:
    for name, source in {**MODULES, **EXPERIMENTS}.items():
        path = nanolm.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    short = (*SMALL, "trainer.max_steps=3", "dataset=text", f"dataset.path={small_text}", "hydra.run.dir=run")
    done = nanolm(*shlex.split(command), *short)
    assert done.returncode == 0, done.stderr


def test_questions_are_answered_by_files_that_exist() -> None:
    table = PAGE.partition("| question | file |")[2].partition("\n\n")[0]
    files = re.findall(r"`(nanolm/[\w/.]*)`", table)
    assert len(table.strip().splitlines()) == 11
    assert all((REPOSITORY / name).exists() for name in files), files


def test_tests_named_in_the_documentation_exist() -> None:
    pages = [REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    named = {path for page in pages for path in re.findall(r"\btests/[\w/]*\w(?:\.py)?\b/?", page.read_text())}
    assert len(named) > 20
    assert [path for path in sorted(named) if not (REPOSITORY / path).exists()] == []
