"""Packages that are also functions of the Python API: `nanolm.training(...)` and `nanolm.report(...)`.

Importing a module of a package binds the package's name in `nanolm`, where it hides a function of that name.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


def make_callable(package: str, module: str) -> None:
    """Let calling a package call the function of its name.

    Args:
        package: a package that is imported at this moment, such as "nanolm.report".
        module: the module that defines the function; imported with the first call.
    """

    def function() -> Any:
        return getattr(importlib.import_module(module), package.rpartition(".")[2])

    class CallablePackage(ModuleType):
        def __call__(self, *arguments: Any, **settings: Any) -> Any:
            return function()(*arguments, **settings)

        @property
        def __signature__(self) -> inspect.Signature:
            return inspect.signature(function())

    sys.modules[package].__class__ = CallablePackage
