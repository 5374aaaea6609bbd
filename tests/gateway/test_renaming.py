from __future__ import annotations

import json

import pytest

from tracer.gateway.renaming import with_model


def test_only_the_models_bytes_change() -> None:
    body = '{ "é":[1.0,1e5,{"model":"inner"}] ,\n"model" : "gpt-x","n":1}\n'.encode()
    assert with_model(body, "other") == body.replace(b'"gpt-x"', b'"other"')


def test_a_key_that_stands_twice_is_replaced_twice() -> None:
    assert json.loads(with_model(b'{"model":"a","x":[],"model":"b"}', "c")) == {"model": "c", "x": []}
    assert b'"b"' not in with_model(b'{"model":"a","model":"b"}', "c")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"x":1}', b'{"model"}', b'{"model":', b'{"model":"a"} {}', b"\xff", b'{"a":' + b"[" * 10**5],
)
def test_what_is_no_object_with_a_model_is_refused_without_quoting_it(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"the request|utf-8") as caught:
        with_model(body, "secret-model")
    assert "secret" not in str(caught.value)
