"""The HTML file: template, styles, scripts, plotly.js and data in one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from nanolm.errors import SettingsError, install_hint
from nanolm.json_text import dump_json
from nanolm.report.contents import MAX_LABEL_LENGTH, Contents
from nanolm.report.curves import MAX_POINTS

if TYPE_CHECKING:
    from nanolm.report.attention_maps import RunMaps
    from nanolm.report.token_losses import TokenLosses

_UNSAFE = re.compile("[<\u2028\u2029\ud800-\udfff]")

# In the order of execution.
SCRIPTS = (
    *("elements", "data", "theme", "plots", "legend", "sweep", "results", "forest", "curves", "settings", "samples"),
    *("losses", "attention", "reproduce", "start"),
)


@dataclasses.dataclass(frozen=True)
class MissingMap:
    """A run without an attention map.

    Attributes:
        run: name of the run.
        reason: for the user.
        is_fault: whether computing the map failed.
    """

    run: str
    reason: str
    is_fault: bool = False


def to_html(
    contents: Contents,
    maps: Sequence[RunMaps] = (),
    without_maps: Sequence[MissingMap] = (),
    losses: TokenLosses | None = None,
) -> str:
    """Build the page. It makes no network requests, and its content security policy forbids them.

    Args:
        maps: attention maps of some of the runs.
        without_maps: the other runs, each with the reason.
        losses: per token; None for no such section.

    Raises:
        SettingsError: plotly is not installed.
    """
    data = {
        # dataclasses.asdict would copy every point of the curves.
        **vars(contents),
        "runs": [vars(entry) for entry in contents.runs],
        "rows": [vars(row) for row in contents.rows],
        "baselines": [vars(baseline) for baseline in contents.baselines],
        "maps": [_maps_as_dict(each) for each in maps],
        "without_maps": [dataclasses.asdict(each) for each in without_maps],
        "losses": None if losses is None else dataclasses.asdict(losses),
        "max_points": MAX_POINTS,
        "max_label_length": MAX_LABEL_LENGTH,
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
    """Serialize data as JSON for a script element: nothing in it ends the element or starts a comment."""
    text = dump_json(data, ensure_ascii=False, separators=(",", ":"))
    # Lone surrogates, as in file names that are not UTF-8, cannot be encoded.
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _maps_as_dict(maps: RunMaps) -> dict[str, Any]:
    """Convert to plain values, with weights in thousandths: more shades cannot be distinguished."""
    return {
        "run": maps.run,
        "texts": [
            {
                **vars(each),
                "layers": [
                    {
                        "layer": layer.layer,
                        "mask": layer.mask,
                        "visible": layer.visible_TxS.astype(int).tolist(),
                        "heads": (layer.weights_HxTxS * 1000).round().astype(int).tolist(),
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
            "the report needs plotly, which is not installed",
            where="nanolm report",
            hint=install_hint("report"),
        ) from error
    return get_plotlyjs()


def _part(name: str) -> str:
    return (files("nanolm.report") / "assets" / name).read_text(encoding="utf-8")
