import subprocess
from pathlib import Path

from nanolm.runs import provenance


def test_versions_cover_the_numeric_packages() -> None:
    assert set(provenance.versions()) == {"python", "nanolm", "torch", "numpy", "tokenizers"}


def test_git_returns_commit_and_dirty(tmp_path: Path) -> None:
    assert provenance.git(tmp_path) == {}
    (tmp_path / "a").write_text("a")
    name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "a"], [*name, "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    clean = provenance.git(tmp_path)
    assert clean["dirty"] is False
    (tmp_path / "a").write_text("b")
    assert provenance.git(tmp_path) == {"commit": clean["commit"], "dirty": True}
