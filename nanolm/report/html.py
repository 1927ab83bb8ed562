"""The HTML file: the template, our styles and scripts, plotly.js and the data, all in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from nanolm.errors import SettingsError, install_hint
from nanolm.json_text import dump_json
from nanolm.report.contents import LONGEST_LABEL, Contents
from nanolm.report.curves import MOST_POINTS

if TYPE_CHECKING:
    from nanolm.report.attention_maps import RunMaps

# In the order in which they are read.
SCRIPTS = ("data", "theme", "legend", "results", "curves", "settings", "samples", "attention", "repeat", "start")


@dataclasses.dataclass(frozen=True)
class Without:
    """A run that has no attention map.

    Attributes:
        run: its name.
        reason: in words.
        is_fault: whether it was to have one.
    """

    run: str
    reason: str
    is_fault: bool = False


def to_html(contents: Contents, maps: Sequence[RunMaps] = (), without_maps: Sequence[Without] = ()) -> str:
    """The whole page. It asks for nothing from anywhere, and its own policy forbids it to.

    Args:
        contents: what it says.
        maps: attention of some of the runs.
        without_maps: runs that have none, each with the reason.

    Raises:
        SettingsError: plotly is not installed.
    """
    data = {
        **dataclasses.asdict(contents),
        "maps": [_plain_maps(each) for each in maps],
        "without_maps": [dataclasses.asdict(each) for each in without_maps],
        "most_points": MOST_POINTS,
        "longest_label": LONGEST_LABEL,
    }
    parts = {
        "STYLE": _part("page.css"),
        "DATA": to_script(data),
        "PLOTLY": _plotly(),
        "SCRIPT": "\n".join(_part(f"{name}.js") for name in SCRIPTS),
    }
    page = _part("page.html")
    for name, text in parts.items():
        before, after = page.split(f"<!--{name}-->")
        page = before + text + after
    return page


def to_script(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    text = dump_json(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _plain_maps(maps: RunMaps) -> dict[str, Any]:
    """With weights in thousandths: no eye tells more shades apart."""
    return {
        "run": maps.run,
        "texts": [
            {
                "text": each.text,
                "tokens": each.tokens,
                "n_left_out": each.n_left_out,
                "step": each.step,
                "layers": [
                    {
                        "layer": layer.layer,
                        "mask": layer.mask,
                        "visible": layer.visible_TxT.astype(int).tolist(),
                        "heads": (layer.weights_HxTxT * 1000).round().astype(int).tolist(),
                    }
                    for layer in each.layers
                ],
            }
            for each in maps.texts
        ],
    }


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise SettingsError(
            "the report is drawn by plotly, which is not installed",
            where="nanolm report",
            hint=install_hint("report"),
        ) from error
    return get_plotlyjs()


def _part(name: str) -> str:
    return (files("nanolm.report") / "assets" / name).read_text(encoding="utf-8")
