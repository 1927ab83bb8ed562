import re
import sys
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from nanolm.analysis.collection import find
from nanolm.errors import PathError, SettingsError
from nanolm.inference.load import load_run
from nanolm.report.attention_maps import RunMaps, text_map
from nanolm.report.contents import gather
from nanolm.report.pictures import COLOURS, write_all

pytest.importorskip("matplotlib", reason="the extra nanolm[plot] is not installed")


def colours_in(path: Path) -> set[str]:
    """Return the colours of more than 60 pixels."""
    from matplotlib.image import imread

    pixels = (imread(BytesIO(path.read_bytes()))[..., :3] * 255).round().astype(np.int32).reshape(-1, 3)
    # Colours as integers: np.unique is many times slower on rows.
    found, counts = np.unique(pixels @ np.array([2**16, 2**8, 1], dtype=np.int32), return_counts=True)
    return {f"#{colour:06x}" for colour, count in zip(found, counts, strict=True) if count > 60}


def test_figures_of_a_sweep(sweep: Path, tmp_path: Path) -> None:
    written = write_all(gather(find([sweep])), [], tmp_path / "new" / "pictures")
    names = [path.stem for path in written]
    losses = [f"loss_by_{place}" for place in ("step", "tokens", "flops", "seconds")]
    assert names == [*losses, "lr", "grad_norm", "settings"]
    assert set(COLOURS) <= colours_in(written[0])
    assert not set(COLOURS) & colours_in(written[-1])


def test_figures_of_two_runs_with_attention(pair: Path, tmp_path: Path) -> None:
    maps = RunMaps("gpt", [text_map(load_run(str(pair / "gpt"), device="cpu"), "12 and 13")])
    written = write_all(gather(find([pair])), [maps], tmp_path)
    assert written[-1].stem == "attention"
    assert {"#0b5cad", "#eef0f2", "#08306b"} <= colours_in(written[-1])
    first, second = COLOURS[:2]
    assert colours_in(written[0]) & set(COLOURS) == {first, second}


def test_one_run_has_no_settings_figure(pair: Path, tmp_path: Path) -> None:
    names = [path.stem for path in write_all(gather(find([pair / "gpt"])), [], tmp_path)]
    assert "settings" not in names


def test_colours_match_the_page() -> None:
    style = (files("nanolm.report") / "assets" / "page.css").read_text()
    light = style.split('[data-theme="dark"]')[0]
    assert re.findall(r"--run-\d: (#\w+)", light) == list(COLOURS)


def test_folder_that_cannot_be_created(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match="the folder cannot be created"):
        write_all(gather(find([pair / "gpt"])), [], tmp_path / "file" / "below")


def test_missing_matplotlib_is_an_error(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=r"pip install 'matplotlib>="):
        write_all(gather(find([pair / "gpt"])), [], tmp_path)
