"""A YAML document whose every value knows its line: errors say file, line, key, value, and what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import NoReturn

import yaml

from tracer.errors import ConfigError
from tracer.gateway.credentials import HIDDEN, Secret

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}|os\.environ/([A-Za-z_][A-Za-z0-9_]*)")
_SECRET_KEY = re.compile(r"(?i)key|secret|token|passw|auth|credential|hash|database|url|sha256|scrypt")
_SECRET_LIKE = re.compile(r"(?i)^(sk|pk|tr|ghp|xox)[-_]|bearer |://[^/]*@|[A-Za-z0-9+/_=-]{24}")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
"""What YAML's parser quotes: single characters and kinds of tokens, ``<...>``, which are its own words, or content."""
_SHOWN = 60


class Node:
    """A value of the document: ``key`` is its dotted place, ``what`` the thing that holds it, in words."""

    def __init__(self, source: str, environ: Mapping[str, str], key: str, node: yaml.Node) -> None:
        self.source, self.environ, self.key, self._node = source, environ, key, node
        self.line = node.start_mark.line + 1

    def fail(self, problem: str, *, hide: bool = False) -> NoReturn:
        """Raise ConfigError that names this value."""
        raise ConfigError(f"{self.source}:{self.line}: {self.key} = {self._shown(hide)}: {problem}") from None

    def mapping(self, what: str, known: tuple[str, ...]) -> dict[str, Node]:
        """The values of a mapping with these keys alone; empty where nothing is written."""
        found = self.entries()
        for name, value in found.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                value.fail(f"is no setting of {what}; {hint}", hide=bool(near and _SECRET_KEY.search(near[0])))
        return found

    def entries(self) -> dict[str, Node]:
        """The values of a mapping with free names."""
        if self._is_null():
            return {}
        if not isinstance(self._node, yaml.MappingNode):
            self.fail("must be a mapping")
        out: dict[str, Node] = {}
        for name_node, value in self._node.value:
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "?"
            child = Node(self.source, self.environ, f"{self.key}.{name}" if self.key else name, value)
            child.line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode) or not name:
                child.fail("a key must be a word")
            if name in out:
                child.fail(f"is written twice, first in line {out[name].line}")
            out[name] = child
        return out

    def items(self) -> Iterator[Node]:
        """The values of a list; a value that is no list counts as a list of one."""
        if self._is_null():
            return
        if not isinstance(self._node, yaml.SequenceNode):
            yield self
            return
        for i, value in enumerate(self._node.value):
            yield Node(self.source, self.environ, f"{self.key}[{i}]", value)

    def is_mapping(self) -> bool:
        """Whether it is a mapping."""
        return isinstance(self._node, yaml.MappingNode)

    def text(self) -> str:
        """A string as written. Numbers and words such as ``no`` are strings too where a string is wanted."""
        return self._plain("a text")

    def strings(self) -> tuple[str, ...]:
        """A list of distinct strings, or one."""
        out: list[str] = []
        for item in self.items():
            if item.text() in out:
                item.fail("is written twice")
            out.append(item.text())
        return tuple(out)

    def choice(self, allowed: tuple[str, ...]) -> str:
        """One of some words."""
        value = self._plain("a word")
        if value not in allowed:
            near = difflib.get_close_matches(value, allowed, n=1)
            self.fail(f"must be one of {', '.join(allowed)}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return value

    def number(self, low: float, high: float, *, open_ends: bool = False) -> float:
        """A number in [low, high], or strictly between them."""
        value = self._decimal()
        inside = low < value < high if open_ends else low <= value <= high
        if not inside:
            self.fail(f"must lie {'strictly between' if open_ends else 'between'} {low:g} and {high:g}")
        return float(value)

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        value = self._decimal()
        if value != value.to_integral_value() or not low <= value <= high:
            self.fail(f"must be a whole number between {low} and {high}")
        return int(value)

    def expanded(self) -> str:
        """A string in which ``${NAME}`` and ``${NAME:-default}`` stand for variables of the environment."""
        return _VARIABLE.sub(self._variable, self._scalar("a text"))

    def secret(self) -> Secret | None:
        """A secret from the environment, None where ``${NAME:-}`` finds none. One that is written out is refused."""
        raw = self._scalar("a text")
        found = _VARIABLE.fullmatch(raw)
        if found is None or found[2]:
            self.fail("secrets come from the environment alone: write ${NAME}", hide=True)
        value = self._variable(found)
        return Secret(value) if value else None

    def _variable(self, found: re.Match[str]) -> str:
        name, default = found[1] or found[3], found[2]
        value = self.environ.get(name, "")
        if not value and default is None:
            self.fail(f"the environment variable {name} is not set", hide=True)
        return value or default or ""

    def _plain(self, wanted: str) -> str:
        value = self._scalar(wanted)
        if _VARIABLE.search(value):
            self.fail("only urls, secrets and folders come from the environment")
        return value

    def _scalar(self, wanted: str) -> str:
        if not isinstance(self._node, yaml.ScalarNode) or self._is_null():
            self.fail(f"must be {wanted}")
        return str(self._node.value)

    def _decimal(self) -> Decimal:
        try:
            value = Decimal(self._plain("a number"))
        except InvalidOperation:
            self.fail("must be a number")
        if not value.is_finite():
            self.fail("must be a number")
        return value

    def _is_null(self) -> bool:
        return isinstance(self._node, yaml.ScalarNode) and self._node.tag == "tag:yaml.org,2002:null"

    def _shown(self, hide: bool) -> str:
        if isinstance(self._node, yaml.MappingNode):
            return "{...}"
        if isinstance(self._node, yaml.SequenceNode):
            return "[...]"
        if not isinstance(self._node, yaml.ScalarNode):
            return "?"
        value = str(self._node.value)
        name = self.key.rpartition(".")[2]
        if hide or _SECRET_KEY.search(name) or (_SECRET_LIKE.search(value) and "${" not in value):
            return HIDDEN
        value = "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
        written = value if self._node.style is None else f"'{value}'"
        return written if len(written) <= _SHOWN else written[: _SHOWN - 3] + "..."


def _own(quoted: re.Match[str]) -> str:
    inner = quoted[0][1:-1]
    return quoted[0] if len(inner) <= 1 or inner.startswith("<") else HIDDEN


def parsed(content: str, source: str, environ: Mapping[str, str]) -> Node:
    """The root of a YAML document. Raises ConfigError with the line, without the content."""
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f":{mark.line + 1}"
        raise ConfigError(f"{source}{where}: is no YAML: {_QUOTED.sub(_own, error.problem or '')}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{source}: is no YAML: {type(error).__name__}") from None
    if root is None:
        raise ConfigError(f"{source}: is empty")
    return Node(source, environ, "", root)
