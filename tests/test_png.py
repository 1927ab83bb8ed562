from pathlib import Path

import pytest

from nanolm import png
from nanolm.errors import SettingsError


def test_a_figure_becomes_a_file(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="the extra nanolm[plot] is not installed")
    path = tmp_path / "empty.png"
    png.write(path, png.encode(figure.Figure()))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_place_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the picture cannot be written") as error:
        png.write(tmp_path / "missing" / "a.png", b"")
    assert "missing" in error.value.where


def test_what_is_missing_can_be_installed() -> None:
    with pytest.raises(SettingsError, match="drawn by matplotlib, which is not installed"), png.importing_matplotlib():
        raise ImportError("matplotlib")
