"""The files of the page: it loads nothing else, and its content security policy forbids everything else."""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

# The look, the themes and the elements are those of the report.
STYLES = (("nanolm.report", "page.css"), ("nanolm.playground", "playground.css"))

# In the order of execution.
SCRIPTS = (
    *(("nanolm.report", name) for name in ("elements.js", "theme.js")),
    *(("nanolm.playground", name) for name in ("controls.js", "tokens.js", "attention.js", "writing.js", "start.js")),
)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class PageFile(NamedTuple):
    """A file of the page."""

    content_type: str
    content: bytes


def page_files() -> dict[str, PageFile]:
    """Read the files of the page, by the last part of their address."""
    style = "\n".join(_part(*part) for part in STYLES)
    script = "\n".join(['"use strict";', *(_part(*part) for part in SCRIPTS)])
    return {
        "": PageFile("text/html; charset=utf-8", _part("nanolm.playground", "page.html").encode()),
        "page.css": PageFile("text/css; charset=utf-8", style.encode()),
        "page.js": PageFile("text/javascript; charset=utf-8", script.encode()),
    }


def _part(package: str, name: str) -> str:
    return (files(package) / "assets" / name).read_text(encoding="utf-8")
