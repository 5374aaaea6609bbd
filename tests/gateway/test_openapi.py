"""The description is true: Schemathesis makes requests of it, good and bad, and holds the answers against it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS, load_all_checks

from tests.gateway import serving
from tests.gateway.conftest import Known
from tests.gateway.serving import MODEL, Served, place, serve
from tests.gateway.standin import Standin
from tracer.gateway import openapi
from tracer.gateway.app import application
from tracer.gateway.codecs import PATHS
from tracer.gateway.config import parse
from tracer.gateway.serving import Gateway
from tracer.policies.serving_settings import ServingSettings

ADMIN = "the-admin-token-of-this-test"
KEY = "the-key-of-this-test"
TOLD = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance",
)  # fmt: skip
OURS = ("/v1/classify", "/v1/models", "/health", "/metrics", "/openapi.json", "/admin")
DOCUMENT = openapi.description()
OPERATIONS = [
    (path, method) for path, item in DOCUMENT["paths"].items() for method in item if method in ("get", "post")
]


def checks(*names: str) -> list[Any]:
    load_all_checks()
    return CHECKS.get_by_names(list(names))


def sha(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module", params=["fitted", *(pytest.param(n, marks=pytest.mark.slow) for n in ("bare", "keys"))])
def served(request: pytest.FixtureRequest, known: Known, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with a policy, one without, and one that asks for a key."""
    home = tmp_path_factory.mktemp(request.param)
    if request.param != "bare":
        place(known.home, home, ServingSettings(audit_rate=0.0))
    more = f"admin: {{token_hash: '{sha(ADMIN)}'}}\nlimits: {{body_bytes: 20000}}\n"
    if request.param == "keys":
        more += f"keys:\n  one: {{hash: '{sha(KEY)}'}}\n"
    with Standin() as api:
        config = serving.settings(api.url, home, more=more)
        with serve(config, home, reader=lambda: config) as served:
            yield served


def of(path: str, method: str) -> Any:
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    return schema[path][method.upper()]


def named(case: Any, n: int) -> None:
    """Bring what is asked to a task, half the time: made-up models and tasks are none."""
    if n % 2 == 0:
        return
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = MODEL
    if isinstance(case.body, dict) and isinstance(case.body.get("task"), str):
        case.body["task"] = "desk"
    if case.path_parameters:
        case.path_parameters["task"] = "desk"


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_answers_are_as_described(served: Served, path: str, method: str) -> None:
    hold(served, path, method, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_many_answers_are_as_described(served: Served, path: str, method: str) -> None:
    hold(served, path, method, 60)


def hold(served: Served, path: str, method: str, n_examples: int) -> None:
    operation = of(path, method)
    ours = path.startswith(OURS)
    headers = {"authorization": f"Bearer {ADMIN if path.startswith('/admin') else KEY}"}

    @settings(
        max_examples=n_examples if method == "post" else 2, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(
        good=operation.as_strategy(),
        bad=operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        if method == "post"
        else st.none(),
        n=st.integers(0, 1),
    )
    def answers(good: Any, bad: Any, n: int) -> None:
        for case in filter(None, (good, bad)):
            named(case, n)
            more = ("negative_data_rejection",) if ours and case is bad else ()
            response = case.call(base_url=served.url, headers=headers)
            case.validate_response(response, checks=checks(*TOLD, *more))

    answers()
    assert served.gateway.ready


@pytest.mark.parametrize("path", [path for path, _ in OPERATIONS if path.startswith("/admin")])
def test_admin_needs_its_token(served: Served, path: str) -> None:
    method = next(method for known, method in OPERATIONS if known == path)
    url = served.url + path.replace("{task}", "desk")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {KEY}"}, {"x-api-key": ADMIN}):
        answer = httpx2.request(method, url, headers=headers)
        assert (answer.status_code, set(answer.json())) == (401, {"error"})


def test_other_methods_are_refused_as_errors(served: Served) -> None:
    for path, method in OPERATIONS:
        if path.startswith(OURS):
            answer = httpx2.request("DELETE", served.url + path.replace("{task}", "desk"))
            assert (answer.status_code, set(answer.json())) == (405, {"error"})
            assert method.upper() in answer.headers["allow"]
    for path in ("/admin", "/admin/none", "/nothing/at/all", "/v2/x"):
        answer = httpx2.get(served.url + path)
        assert (answer.status_code, set(answer.json())) == (404, {"error"})


def test_every_route_is_described(tmp_path: Path) -> None:
    """A route that is added is added to ``openapi.yaml`` too. The page of a browser is no part of it."""
    gateway = Gateway(parse(serving.settings("http://127.0.0.1:9", tmp_path), {}))
    routes = [route for route in application(gateway).routes if getattr(route, "include_in_schema", True)]
    paths = {getattr(route, "path", "") for route in routes} | set(PATHS)
    described = {path for path in paths if path.startswith(OURS)} | {path for path in paths if "rest" not in path}
    assert described == set(DOCUMENT["paths"])
