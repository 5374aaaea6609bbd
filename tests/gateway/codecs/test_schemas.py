"""Enums in the forms in which schemas write them."""

from __future__ import annotations

import time
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
        {"anyOf": [{"enum": ["a"]}, {"$ref": "#/properties/x"}]},
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


@pytest.mark.parametrize(
    "node",
    [{"type": "string"}, {"type": "array", "items": {"enum": ["a"]}}, {"type": "object", "properties": {}}, {}, True],
)
def test_a_free_field_is_not_left_out(node: Any) -> None:
    for required in (["desk"], []):
        schema = {"properties": {"desk": {"enum": ["a", "b"]}, "reason": node}, "required": required}
        assert slot_of_schema(Slot("json"), schema)[1] == "the free field 'reason'"


def test_too_many_combinations_are_not_listed() -> None:
    values = {"enum": [str(i) for i in range(20)]}
    slot, problem = slot_of_schema(Slot("json"), {"properties": {"a": values, "b": values}, "required": ["a", "b"]})
    assert problem == ""
    assert options_of(slot) is None


DOUBLED = {f"v{i}": {"anyOf": [{"$ref": f"#/$defs/v{i + 1}"}] * 2} for i in range(12)} | {"v12": {"enum": ["x"]}}
ONE_LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    ("defined", "n"),
    [
        (DOUBLED, 100),
        ({"v0": {"enum": [str(i) for i in range(4096)]}}, 2000),
        ({"v0": {"enum": [ONE_LONG, "y"]}}, 2000),
        ({"v0": {"$ref": "#/" + "a/" * 500_000}}, 10_000),
        ({"v0": {"anyOf": [{"$ref": "#/$defs/v1"}] * 30_000}, "v1": {"enum": ["x"]}}, 1),
        ({"v0": {"type": "array", "items": {}} | {f"k{i}": 0 for i in range(10_000)}}, 10_000),
        ({"v0": {"enum": ["a", "b"]}}, 30_000),
    ],
    ids=["doubling", "large enum", "long value", "long reference", "alternatives", "keywords", "fields"],
)
def test_references_do_not_make_a_schema_slow(defined: dict[str, Any], n: int) -> None:
    names = [f"p{i}" for i in range(n)]
    schema = {"$defs": defined, "properties": {name: {"$ref": "#/$defs/v0"} for name in names}, "required": names}
    begin = time.perf_counter()
    slot, problem = slot_of_schema(Slot("json"), schema)
    assert options_of(slot) is None
    assert time.perf_counter() - begin < 1.0
    assert problem or slot.fields == tuple(names)


def test_a_schema_beyond_all_bounds_is_not_answered_in_part() -> None:
    yes = {f"p{i}": {"const": True} for i in range(20_000)}
    schema = {"properties": {"desk": {"enum": ["a", "b"]}} | yes, "required": ["desk"]}
    assert slot_of_schema(Slot("json"), schema) == (Slot("json"), "a schema that is too large or too deep")
    large = {"properties": {"desk": {"enum": [str(i) for i in range(4096)]}}, "required": ["desk"]}
    slot, problem = slot_of_schema(Slot("json"), large)
    assert (problem, len(options_of(slot) or ())) == ("", 4096)
