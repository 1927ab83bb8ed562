"""nanolm: a research training framework for small language models, bigram to GPT."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanolm.interop.export import export as export
    from nanolm.interop.import_model import import_model as import_model

# Functions of the Python API by their module. They are imported when they are used: torch takes seconds.
_FUNCTIONS = {"export": "nanolm.interop.export", "import_model": "nanolm.interop.import_model"}

__all__ = [*_FUNCTIONS]


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_FUNCTIONS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FUNCTIONS])
