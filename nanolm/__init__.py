"""nanolm: a research training framework for small language models, bigram to GPT.

    import nanolm

    run = nanolm.train("model=gpt", "dataset=tiny_shakespeare", max_steps=500)
    print(run.generate("To be"))

docs/python_api.md describes the functions; their errors are those of the command line, as exceptions of nanolm.errors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanolm import errors as errors
    from nanolm.api.analysis import compare as compare
    from nanolm.api.analysis import count as count
    from nanolm.api.analysis import report as report
    from nanolm.api.run import Run as Run
    from nanolm.api.run import load as load
    from nanolm.api.training import Training as Training
    from nanolm.api.training import sweep as sweep
    from nanolm.api.training import train as train
    from nanolm.api.training import training as training
    from nanolm.interop.export import export as export
    from nanolm.interop.import_model import import_model as import_model
    from nanolm.training.step import Step as Step

# The Python API by its modules, which are imported when they are used: torch takes seconds. `training` and `report` are
# packages that can be called (nanolm.callable_packages).
_MODULES = {
    "train": "nanolm.api.training",
    "training": "nanolm.training",
    "sweep": "nanolm.api.training",
    "load": "nanolm.api.run",
    "compare": "nanolm.api.analysis",
    "report": "nanolm.report",
    "count": "nanolm.api.analysis",
    "export": "nanolm.interop.export",
    "import_model": "nanolm.interop.import_model",
    "Run": "nanolm.api.run",
    "Training": "nanolm.api.training",
    "Step": "nanolm.training.step",
    "errors": "nanolm.errors",
}

__all__ = [  # noqa: RUF022  in the order of the table
    "train",
    "training",
    "sweep",
    "load",
    "compare",
    "report",
    "count",
    "export",
    "import_model",
    "Run",
    "Training",
    "Step",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_MODULES[name])
    return module if _MODULES[name] == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
