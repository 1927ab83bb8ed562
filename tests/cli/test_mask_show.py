import sys
from io import BytesIO
from pathlib import Path

import pytest
import torch

from nanolm.cli import main as cli
from nanolm.cli.mask_show import HIDDEN_COLOUR, VISIBLE_COLOUR, draw, example_documents, layer_masks, to_png
from nanolm.config.mask import BandedCausalConfig, BandedConfig, CausalConfig
from nanolm.errors import SettingsError
from nanolm.model import masks
from tests.helpers import Nanolm, make_config

SMALL_PICTURE = """\
banded_causal, window 1: layers 0, 1, 2
36.0% of 5 x 5 positions are visible, causal
        key
query   0       4
     0  ■ · · · ·
     1  ■ ■ · · ·
     2  · ■ ■ · ·
     3  · · ■ ■ ·
     4  · · · ■ ■

banded, window 1: layer 3
52.0% of 5 x 5 positions are visible, not causal: position 0 attends to 1
        key
query   0       4
     0  ■ ■ · · ·
     1  ■ ■ ■ · ·
     2  · ■ ■ ■ ·
     3  · · ■ ■ ■
     4  · · · ■ ■
"""


def test_a_small_mask_is_drawn_as_squares(nanolm: Nanolm) -> None:
    pattern = "mask.pattern=[banded_causal,banded_causal,banded_causal,banded]"
    done = nanolm("mask", "show", "mask=banded", "mask.window=1", pattern, "--length", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == SMALL_PICTURE


DOCUMENTS_PICTURE = """\
document, within documents: every layer, over documents of length 3, 2, 1
27.8% of 6 x 6 positions are visible, causal
        key
query   0       4
     0  ■ · · · · ·
     1  ■ ■ · · · ·
     2  ■ ■ ■ · · ·
     3  · · · ■ · ·
     4  · · · ■ ■ ·
     5  · · · · · ■
"""


def test_a_document_mask_is_drawn_over_documents(nanolm: Nanolm) -> None:
    done = nanolm("mask", "show", "mask=document", "--length", "6")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == DOCUMENTS_PICTURE


def test_example_documents_fill_the_length() -> None:
    for length in range(1, 100):
        lengths = example_documents(length)
        assert sum(lengths) == length
        assert 0 not in lengths
        assert length < 4 or len(lengths) == 3
    plain, within = layer_masks(make_config("mask.pattern=[banded,document]"), 12)
    assert (plain.title, within.title) == (
        "banded, window 16: layers 0, 2",
        "document, within documents: layers 1, 3, over documents of length 6, 4, 2",
    )
    assert plain.visible_TxS.all()
    blocks = torch.block_diag(*(torch.ones(n, n).tril() for n in (6, 4, 2)))
    assert torch.equal(within.visible_TxS, blocks.bool())


def test_a_medium_mask_is_drawn_in_half_blocks() -> None:
    lines = draw(masks.dense_mask(BandedConfig(window=1), 25))
    assert lines[:2] == ["        key", "query   0       8       16      24"]
    assert lines[2] == "     0  █" + "█▄" + "·" * 22
    assert lines[3] == "     2  ·▀██▄" + "·" * 20
    assert lines[14] == "    24  " + "·" * 23 + "▀▀"
    assert lines[15] == "        a character is 1 key wide and 2 queries high"


def test_a_large_mask_is_drawn_in_shades() -> None:
    lines = draw(masks.dense_mask(CausalConfig(), 256))
    assert lines[1].startswith("query   0       32      64")
    assert lines[2] == "     0  ▓░" + "·" * 62
    assert lines[3] == "     8  ██▓░" + "·" * 60
    assert lines[34:] == [
        "        a character is 4 keys wide and 8 queries high;",
        "        shades show the visible share: · none, ░, ▒, ▓ some, █ all",
    ]
    for length in (65, 129, 1000):
        whole = draw(torch.ones(length, length, dtype=torch.bool))
        assert all(set(line[8:]) == {"█"} for line in whole[2:-2])
        assert max(map(len, whole)) <= 80


def test_shades_keep_none_and_all_exact() -> None:
    visible = torch.zeros(256, 256, dtype=torch.bool)
    visible[0, 0] = True
    assert draw(visible)[2] == "     0  ░" + "·" * 63
    assert draw(~visible)[2] == "     0  ▓" + "█" * 63


def cells(png: bytes, length: int) -> list[torch.Tensor]:
    """Read the masks from the pixels of a figure, left to right."""
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    pixels = torch.from_numpy(imread(BytesIO(png)).copy())[..., :3]
    seen, unseen = (
        (pixels - torch.tensor(to_rgb(colour))).abs().amax(-1) < 0.02 for colour in (VISIBLE_COLOUR, HIDDEN_COLOUR)
    )
    area = seen | unseen
    rows = (area.sum(1) > length).nonzero().flatten()
    in_mask = (area[rows[0] : rows[-1]].float().mean(0) > 0.5).tolist()
    edges = [x for x in range(1, len(in_mask)) if in_mask[x] != in_mask[x - 1]]
    found = []
    for left, right in zip(edges[::2], edges[1::2], strict=True):
        centres = (torch.arange(length) + 0.5) / length
        y = (rows[0] + centres * (rows[-1] + 1 - rows[0])).long()
        x = (left + centres * (right - left)).long()
        assert area[y][:, x].all()
        found.append(seen[y][:, x])
    return found


def test_the_png_shows_every_position(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra nanolm[plot] is not installed")
    path = tmp_path / "mask.png"
    overrides = ["mask=pattern", "mask.pattern=[strided,prefix,document]", "mask.stride=3", "mask.prefix_length=4"]
    overrides.append("size.n_layers=3")
    cli.run(["mask", "show", *overrides, "--length", "17", "--png", str(path)])
    assert capsys.readouterr().out.endswith(f"\n\nwritten to {path}\n")
    drawn = layer_masks(make_config(*overrides), 17)
    found = cells(path.read_bytes(), 17)
    assert len(found) == len(drawn) == 3
    for pixels, mask in zip(found, drawn, strict=True):
        assert torch.equal(pixels, mask.visible_TxS)


def test_a_png_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("matplotlib", "matplotlib.colors", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=r"pip install 'matplotlib>="):
        cli.run(["mask", "show", "--png", str(tmp_path / "mask.png")])
    assert list(tmp_path.iterdir()) == []


def test_a_png_of_many_masks() -> None:
    pytest.importorskip("matplotlib", reason="the extra nanolm[plot] is not installed")
    names = "banded,banded_causal,block_local,causal,document,none,prefix,strided"
    drawn = layer_masks(make_config("mask=pattern", f"mask.pattern=[{names}]", "size.n_layers=8"), 24)
    assert [mask.title.split(":")[0].split(",")[0] for mask in drawn] == names.split(",")
    assert to_png(drawn).startswith(b"\x89PNG")


def test_the_default_length_is_the_context_length() -> None:
    (mask,) = layer_masks(make_config("mask=banded_causal", "size.context_length=40"))
    assert mask.title == "banded_causal, window 16: every layer"
    assert torch.equal(mask.visible_TxS, masks.dense_mask(BandedCausalConfig(window=16), 40))


def test_a_plugin_mask_is_drawn(nanolm: Nanolm) -> None:
    (nanolm.folder / "my_masks.py").write_text(  # type: ignore[attr-defined]
        "from nanolm.registry import MASKS\n"
        "@MASKS.register('itself')\n"
        "def itself(query, key, config):\n"
        "    return key == query\n"
        "@MASKS.register('only_before')\n"
        "def only_before(query, key, config):\n"
        "    return key < query\n"
    )
    overrides = ("mask", "show", "plugins=[my_masks]", "--length", "3")
    done = nanolm(*overrides, "mask=itself", "mask.pattern=[itself,causal]")
    assert "itself: layers 0, 2\n33.3% of 3 x 3" in done.stdout, done.stderr
    done = nanolm(*overrides, "mask=only_before")
    assert done.returncode == 2
    assert "the mask 'only_before' lets position 0 see nothing" in done.stderr


def test_mistakes_are_reported(nanolm: Nanolm) -> None:
    for arguments, expected in {
        ("shwo",): "did you mean show?",
        ("show", "mask=bandd"): "did you mean banded?",
        ("show", "mask=banded", "mask.window=0"): "mask.window is 0, and must be at least 1",
        ("show", "mask.pattern=SSL"): "not a multiple of the 3 masks in mask.pattern",
        ("show", "--length", "0"): "--length is 0, which must be at least 1",
        ("show", "--length", "100000"): "--length N with N <= 8192",
    }.items():
        done = nanolm("mask", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    assert nanolm("mask").stdout.startswith("nanolm mask show")
