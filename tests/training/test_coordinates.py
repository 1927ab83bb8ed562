import json
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.errors import SettingsError
from nanolm.training.coordinates import check_coordinates
from tests.helpers import make_config

SMALL = ("model=gpt", "size=tiny", "size.d_model=16", "size.n_heads=2", "size.n_layers=1", "size.context_length=8")


def test_coordinates_show_that_lr_fits_all_widths() -> None:
    found = {}
    for scaling in ("none", "width"):
        config = make_config(*SMALL, "optimizer=adamw", "optimizer.lr=0.01", f"optimizer.lr_scaling={scaling}")
        found[scaling] = {coordinate.name: coordinate for coordinate in check_coordinates(config, 13, 3)}
    assert list(found["width"]) == ["blocks.0.attention", "blocks.0.feed_forward", "blocks.0", "logits"]
    logits = found["width"]["logits"]
    assert list(logits.sizes) == [8, 16, 32, 64]
    # The head starts at zero.
    assert all(sizes[0] == 0 < sizes[3] for sizes in logits.sizes.values())
    assert logits.exponent is not None
    assert found["none"]["logits"].exponent > logits.exponent + 0.5


def test_coordinates_command_prints_json_and_writes_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    png = tmp_path / "coordinates.png"
    assert cli.run(["count", "--coordinates", *SMALL, "--vocab-size=13", "--steps=1", f"--png={png}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[-1]["name"] == "logits"
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("overrides", "error"),
    [(("model=bigram",), "model=bigram has no coordinate check"), (("size.d_ff=8",), "size.d_ff is set")],
)
def test_coordinates_refuse_models_without_several_widths(overrides: tuple[str, ...], error: str) -> None:
    with pytest.raises(SettingsError, match=error):
        check_coordinates(make_config(*SMALL, *overrides), 13, 1)
