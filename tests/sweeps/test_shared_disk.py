"""Tokens: files that show whether another process sees a directory."""

from pathlib import Path

from nanolm.files import remove_abandoned
from nanolm.sweeps.shared_disk import token_in


def test_token_is_visible_until_the_end_of_its_block(tmp_path: Path) -> None:
    with token_in(tmp_path) as token:
        assert token.path.parent == tmp_path
        assert token.is_visible()
        remove_abandoned(tmp_path, "nanolm")
        assert token.is_visible(), "another process must not remove it"
    assert not token.is_visible()
    assert not list(tmp_path.iterdir())


def test_token_of_another_disk_is_not_visible(tmp_path: Path) -> None:
    with token_in(tmp_path) as first, token_in(tmp_path) as second:
        assert first.path != second.path
        first.path.write_text(second.text)
        assert not first.is_visible()
        first.path.unlink()
        first.path.mkdir()
        assert not first.is_visible()
        first.path.rmdir()
