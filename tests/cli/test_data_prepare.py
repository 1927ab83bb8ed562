import re
from pathlib import Path

from tests.helpers import Nanolm


def test_data_prepare_fills_the_cache_once(nanolm: Nanolm, small_text: Path) -> None:
    overrides = ("dataset=text", f"dataset.path={small_text}")
    done = nanolm("data", "prepare", *overrides)
    assert done.returncode == 0, done.stderr
    assert re.search(r"tokens +train [\d,]+, val [\d,]+; vocab size \d+", done.stdout)
    folder = Path(re.search(r"folder +(\S+)", done.stdout)[1])  # type: ignore[index]
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = nanolm("data", "prepare", *overrides)
    assert again.stdout.splitlines()[:3] == done.stdout.splitlines()[:3]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
