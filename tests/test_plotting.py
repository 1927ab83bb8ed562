import pytest

from nanolm import plotting
from nanolm.errors import SettingsError


def test_encode_returns_a_png() -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="the extra nanolm[plot] is not installed")
    assert plotting.encode(figure.Figure()).startswith(b"\x89PNG")


def test_missing_matplotlib_is_explained() -> None:
    with pytest.raises(SettingsError, match="--png needs matplotlib"), plotting.importing_matplotlib():
        raise ImportError("matplotlib")
