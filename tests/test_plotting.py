import pytest

from nanolm import plotting as png
from nanolm.errors import SettingsError


def test_a_figure_becomes_a_file() -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="the extra nanolm[plot] is not installed")
    assert png.encode(figure.Figure()).startswith(b"\x89PNG")


def test_what_is_missing_can_be_installed() -> None:
    with pytest.raises(SettingsError, match="drawn by matplotlib, which is not installed"), png.importing_matplotlib():
        raise ImportError("matplotlib")
