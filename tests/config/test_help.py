import dataclasses

import pytest

from nanolm.config.fields import setting
from nanolm.config.help import format_value, render_settings
from nanolm.config.model import Norm
from nanolm.config.run import SINGLE_SCHEMAS
from nanolm.registry import GROUPS


@dataclasses.dataclass
class Inner:
    rate: float = setting(1.0, doc="A rate.", ge=0)


@dataclasses.dataclass
class Schema:
    name: str = "example"
    path: str = setting(doc="A path.")
    count: int | None = setting(None, doc="A count. null: all.", ge=1, lt=9)
    norm: Norm = setting(Norm.rms_norm, doc="A norm.")
    inner: Inner = setting(default_factory=Inner, doc="Rates.")
    undocumented: bool = False


def test_settings_are_rendered_with_bounds_and_choices() -> None:
    assert render_settings(Schema, {"count": 4}, "group.") == (
        "  group.path=...                    A path. (required)\n"
        "  group.count=4                     A count. null: all. (1 <= integer < 9; default: null)\n"
        "  group.norm=rms_norm               A norm. One of none, layer_norm, rms_norm.\n"
        "  group.inner.rate=1.0              A rate. (number >= 0)\n"
        "  group.undocumented=false\n"
    )


def test_choices_are_explained_on_request() -> None:
    text = render_settings(Schema, {"norm": "none"}, explains_choices=True)
    assert "norm=none                         A norm. (default: rms_norm)\n" in text
    assert "                                      layer_norm  LayerNorm with weights.\n" in text


@pytest.mark.parametrize("width", [80, 100])
def test_lines_fit_the_width(width: int) -> None:
    schemas = list(SINGLE_SCHEMAS.items())
    for group, registry in GROUPS.items():
        schemas += [(group, schema) for schema in (registry.base, *registry.schemas.values())]
    for group, schema in schemas:
        for line in render_settings(schema, None, f"{group}.", width, explains_choices=True).splitlines():
            # A key with its value is never broken.
            assert len(line) <= width or line.startswith(f"  {group}."), line


def test_values_are_formatted_as_they_are_typed() -> None:
    values = (None, True, 1e-8, 0.25, [1, "a"], "text", 3)
    assert [format_value(value) for value in values] == ["null", "true", "1e-8", "0.25", "[1, a]", "text", "3"]
