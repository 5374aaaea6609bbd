"""Enums in the forms in which schemas write them."""

from __future__ import annotations

from typing import Any

import pytest

from tracer.gateway.calls import Slot
from tracer.gateway.codecs.schemas import options_of, slot_of_schema


@pytest.mark.parametrize(
    ("node", "labels"),
    [
        ({"enum": ["a", "b"]}, ("a", "b")),
        ({"type": ["string", "null"], "enum": ["a", None]}, ("a", "null")),
        ({"anyOf": [{"const": "a"}, {"const": "b"}]}, ("a", "b")),
        ({"oneOf": [{"enum": ["a", "b"]}, {"type": "null"}]}, ("a", "b", "null")),
        ({"allOf": [{"$ref": "#/$defs/x"}], "description": "as pydantic 1 wrote it"}, ("a", "b")),
        ({"type": "boolean"}, ("true", "false")),
        ({"enum": [1, 2, 2]}, ("1", "2")),
        ({"enum": ["a", "", "b"]}, ("a", "b")),
    ],
)
def test_an_enum_in_any_spelling(node: dict[str, Any], labels: tuple[str, ...]) -> None:
    schema = {"properties": {"x": node}, "required": ["x"], "$defs": {"x": {"enum": ["a", "b"]}}}
    slot, problem = slot_of_schema(Slot("json"), schema)
    assert problem == ""
    assert options_of(slot) == labels


@pytest.mark.parametrize(
    "node",
    [
        {"type": "string"},
        {"$ref": "#/properties/x"},
        {"$ref": "https://elsewhere/schema"},
        {"anyOf": [{"enum": ["a"]}, {"type": "string"}]},
        {"anyOf": [{"$ref": "#/properties/x"}] * 1000},
        {"enum": []},
        {"enum": [["a"], ["b"]]},
        {"enum": list(range(5000))},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"enum": ["a", 1]}},
    ],
)
def test_what_is_no_enum(node: dict[str, Any]) -> None:
    slot, problem = slot_of_schema(Slot("json"), {"properties": {"x": node}, "required": ["x"]})
    assert problem
    assert options_of(slot) is None


def test_too_many_combinations_are_not_listed() -> None:
    values = {"enum": [str(i) for i in range(20)]}
    slot, problem = slot_of_schema(Slot("json"), {"properties": {"a": values, "b": values}, "required": ["a", "b"]})
    assert problem == ""
    assert options_of(slot) is None
