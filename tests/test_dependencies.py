import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from tests.helpers import REPOSITORY


def imported_packages() -> set[str]:
    """The names of the packages that nanolm and its Hydra plugins import, without the standard library."""
    names: set[str] = set()
    for path in [*REPOSITORY.glob("nanolm/**/*.py"), *REPOSITORY.glob("hydra_plugins/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"nanolm", "hydra_plugins"}


def test_dependencies_declare_every_imported_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines)
    declared = {re.split(r"[^\w.-]", line)[0].lower() for line in (*project["dependencies"], *extras)}
    providers = packages_distributions()
    undeclared = [
        name
        for name in sorted(imported_packages())
        if declared.isdisjoint(package.lower() for package in providers.get(name, [name]))
    ]
    assert undeclared == []
