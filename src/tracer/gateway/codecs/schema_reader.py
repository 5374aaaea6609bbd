"""The values that the nodes of a JSON schema allow, read in time that the length of the schema bounds.

References let a short schema name the same node over and over, and its alternatives double at each step. So each node
is read once, and what is read in all has a bound.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tracer.gateway.calls import Scalar, Several
from tracer.gateway.codecs.bodies import canonical

MAX_DEPTH = 16
_MAX_VALUES = 4096
"""Values of one field beyond which it counts as free."""
_MAX_STEPS = 20_000
"""Nodes and values that are read of one schema."""
_MAX_REFERENCE = 1024
_FREE: dict[str, Any] = {}
_OF_LISTS = frozenset({"type", "items", "minItems", "maxItems", "uniqueItems", "description", "title", "default"})


class SchemaSizeError(Exception):
    """A schema that takes too long to read. Never leaves the codecs."""


class Allowed(NamedTuple):
    """The values that a node lists, each once; none where it is free. ``alike``: two of them make the same label."""

    values: tuple[Scalar, ...] = ()
    alike: bool = False


class SchemaReader:
    """Reads the nodes of one schema, ``root``. Its methods raise SchemaSizeError."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self._left = _MAX_STEPS
        # By identity: the schema outlives the reader.
        self._resolved: dict[int, dict[str, Any]] = {}
        self._listed: dict[int, list[Any]] = {}
        self._allowed: dict[int, Allowed] = {}

    def resolved(self, node: object, depth: int = 0) -> dict[str, Any]:
        """The node behind local references; empty where there is none."""
        self._spend(1)
        if not isinstance(node, dict) or depth > MAX_DEPTH:
            return _FREE
        if (known := self._resolved.get(id(node))) is not None:
            return known
        reference, parts = node.get("$ref"), node.get("allOf")
        if isinstance(reference, str) and reference.startswith("#") and len(reference) <= _MAX_REFERENCE:
            found = self.resolved(_pointed(self.root, reference), depth + 1)
        elif isinstance(parts, list) and len(parts) == 1:
            found = self.resolved(parts[0], depth + 1)
        else:
            found = _FREE if reference is not None or parts is not None else node
        self._resolved[id(node)] = found
        return found

    def allowed(self, node: dict[str, Any]) -> Allowed:
        """What a resolved node lists."""
        known = self._allowed.get(id(node))
        if known is None:
            listed = self._values(node, 0)
            if all(value is None or isinstance(value, str | int | float) for value in listed):
                values = tuple({canonical(value): value for value in listed}.values())
                known = Allowed(values, len({label_of(value) for value in values}) < len(values))
            else:
                known = Allowed()
            self._allowed[id(node)] = known
        return known

    def members(self, node: dict[str, Any]) -> tuple[Allowed, Several | None]:
        """What a list may hold, and how many of it; nothing where the node is no list of an enum of strings."""
        self._spend(len(node))
        if node.get("type") != "array" or set(node) - _OF_LISTS:
            return Allowed(), None
        found = self.allowed(self.resolved(node.get("items")))
        self._spend(len(found.values))
        least, most = node.get("minItems", 0), node.get("maxItems")
        counts = type(least) is int and (most is None or type(most) is int)
        if not found.values or not counts or not all(isinstance(value, str) for value in found.values):
            return Allowed(), None
        return found, Several(least, most, node.get("uniqueItems") is True)

    def _values(self, node: dict[str, Any], depth: int) -> list[Any]:
        self._spend(1)
        if depth > MAX_DEPTH:
            raise SchemaSizeError
        if (known := self._listed.get(id(node))) is not None:
            return known
        self._listed[id(node)] = []  # what holds itself lists nothing
        found = self._listed[id(node)] = self._read(node, depth)
        self._spend(len(found))
        return found

    def _read(self, node: dict[str, Any], depth: int) -> list[Any]:
        alternatives = node.get("anyOf", node.get("oneOf"))
        if "const" in node:
            return [node["const"]]
        if isinstance(node.get("enum"), list):
            listed: list[Any] = node["enum"]
            return listed if len(listed) <= _MAX_VALUES else []
        if isinstance(alternatives, list):
            gathered: list[Any] = []
            for other in alternatives:
                found = self._values(self.resolved(other), depth + 1)
                self._spend(len(found))
                gathered += found
                if not found or len(gathered) > _MAX_VALUES:
                    return []
            return gathered
        if node.get("type") == "boolean":
            return [True, False]
        return [None] if node.get("type") == "null" else []

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise SchemaSizeError


def label_of(value: Scalar) -> str:
    """The label of one value: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else canonical(value)


def _pointed(root: dict[str, Any], reference: str) -> object:
    node: object = root
    for part in reference.split("/")[1:]:
        if not isinstance(node, dict):
            return None
        node = node.get(part.replace("~1", "/").replace("~0", "~"))
    return node
