"""Load YAML from untrusted files: plain values only, with limits on size and nesting.

PyYAML's safe loaders execute nothing, but expand aliases without bound, recurse once per level of nesting (libyaml
crashes the process), and construct dates, sets and bytes, which are not plain values.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
# Keys and values; a file of settings has a few hundred.
MAX_VALUES = 10_000

# libyaml parses about ten times as fast as PyYAML's own parser.
LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Most files have none of these, and then neither anchors, aliases, tags, several documents nor deep nesting. Lines end
# in other characters than a line feed too.
_SPECIAL = re.compile("[&*!?\r\x85\u2028\u2029]")
_DASHES = re.compile(r"(?:-[ \t]+){10}")
_MAX_BRACKETS = 20
# libyaml rejects escapes of surrogates, which stand for bytes of file names that are not UTF-8.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# Characters of a reason, which may quote the file.
_MAX_REASON = 200
# Characters of a value that a reason quotes, and of an integer.
_MAX_SHOWN = 100

_INT = "tag:yaml.org,2002:int"
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))


class PlainYamlError(ValueError):
    """YAML that is malformed or not plain.

    Attributes:
        line: line number, counted from 1; None if the problem is with the whole text.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def load_plain_yaml(text: str | bytes, loader: Any = LOADER) -> Any:
    """Load one YAML document that consists of mappings, lists, strings, numbers, booleans and null.

    Args:
        text: as bytes, UTF-8.
        loader: a safe loader class of PyYAML.

    Raises:
        PlainYamlError: the text is malformed, larger than MAX_BYTES, nested deeper than MAX_DEPTH, not UTF-8, or has
            more than MAX_VALUES keys and values, an anchor, an alias, a tag, a date, an integer of more than 64 bits,
            or several documents.
    """
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise PlainYamlError(f"it has {size:,} bytes, more than {MAX_BYTES:,}")
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        parser = LOADER
        if _SURROGATE.search(text):
            parser, loader = yaml.SafeLoader, yaml.SafeLoader if loader is LOADER else loader
        if _needs_check(text):
            _check_events(text, parser)
        return yaml.load(text, Loader=_plain(loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).split("\n")[0]
        raise PlainYamlError(reason[:_MAX_REASON], None if mark is None else mark.line + 1) from error
    except (ValueError, OverflowError) as error:
        if isinstance(error, PlainYamlError):
            raise
        raise PlainYamlError(str(error)[:_MAX_REASON]) from error


def _needs_check(text: str) -> bool:
    # Several searches are faster than one for any of them. A value takes at least two characters.
    return bool(
        len(text) > 2 * MAX_VALUES
        or _SPECIAL.search(text)
        or any(f"\n{mark}" in text or text.startswith(mark) for mark in ("---", "..."))
        or " " * MAX_DEPTH in text
        or _DASHES.search(text)
        or text.count("[") + text.count("{") > _MAX_BRACKETS
    )


def _check_events(text: str, parser: type[Any]) -> None:
    """Check the structure before anything is constructed. The parser itself does not recurse."""
    depth = documents = values = 0
    for event in yaml.parse(text, Loader=parser):
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise PlainYamlError("it has several documents", line)
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise PlainYamlError(f"it is nested more than {MAX_DEPTH} levels deep", line)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        values += isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if values > MAX_VALUES:
            raise PlainYamlError(f"it has more than {MAX_VALUES:,} keys and values", line)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise PlainYamlError("anchors and aliases are not supported", line)
        if (tag := getattr(event, "tag", None)) is not None:
            raise PlainYamlError(f"the tag {tag[:_MAX_SHOWN]} is not supported", line)


@functools.cache
def _plain(loader: Any) -> type[Any]:
    """A loader that refuses implicit types other than plain ones, such as dates."""
    constructors: dict[str | None, Any] = {tag: loader.yaml_constructors[tag] for tag in _PLAIN_TAGS}
    construct_int = constructors[_INT]

    def construct_small_int(self: Any, node: Any) -> int:
        # Converting long ones takes long, and printing them fails.
        if len(node.value) > _MAX_SHOWN or not -(2**63) <= (value := construct_int(self, node)) < 2**63:
            raise PlainYamlError(f"{node.value[:_MAX_SHOWN]} is too large a number", node.start_mark.line + 1)
        return int(value)

    constructors |= {_INT: construct_small_int, None: _refuse}
    return type("PlainLoader", (loader,), {"yaml_constructors": constructors})


def _refuse(loader: Any, node: Any) -> None:
    kind = node.tag.rsplit(":", 1)[-1]
    value = str(node.value)[:_MAX_SHOWN]
    raise PlainYamlError(f"{value!r} is a {kind}, which is not supported", node.start_mark.line + 1)
