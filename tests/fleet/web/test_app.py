"""The application as a whole: the shape of errors, and its own description."""

from __future__ import annotations

import http.client
import json
import pkgutil
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import msgspec
import pytest

from outrider.fleet.app import status_of
from outrider.fleet.routes import ROUTES
from outrider.fleet.routes import wire as wire_module
from outrider.runtime import errors
from outrider.runtime.api_client.types import ErrorBody
from outrider.runtime.errors import OutriderError


def _ask(web: Any, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=10)
    connection.request(method, path, body=body, headers={"Authorization": f"Bearer {web.key}"})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/none", None, 404),
        ("GET", "/", None, 404),
        ("PUT", "/v1/devices", b"", 405),
        ("GET", "/v1/rollouts/x", None, 422),
        ("GET", "/v1/jobs/99999999999999999999999", None, 422),
        ("GET", "/v1/events?limit=x", None, 422),
        ("POST", "/v1/rollouts", b"{", 422),
        ("POST", "/v1/rollouts", b"", 422),
        ("POST", "/v1/rollouts", b"\xff", 422),
        ("POST", "/v1/enrol", b"[]", 422),
        ("POST", "/v1/bundles", b"x", 403),
    ],
)
def test_every_error_has_the_same_shape(web: Any, method: str, path: str, body: bytes | None, status: int) -> None:
    found, data = _ask(web, method, path, body)
    assert found == status
    assert msgspec.json.decode(data, type=ErrorBody).error.message


def test_bodies_over_the_limit_are_refused(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "MAX_JSON_BYTES", 100)
    monkeypatch.setattr(wire_module, "MAX_BATCH_BYTES", 200)
    assert _ask(web, "POST", "/v1/enrol", b" " * 101)[0] == 413
    assert _ask(web, "POST", "/v1/labels", b" " * 101)[0] == 422
    assert _ask(web, "POST", "/v1/labels", b" " * 201)[0] == 413


def test_a_crash_is_answered_without_its_details(
    web: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("the secret is 42")

    monkeypatch.setattr(type(web.state.database), "read", fail)
    status, data = _ask(web, "GET", "/v1/health")
    assert status == 200
    status, data = _ask(web, "GET", "/v1/devices")
    assert status == 500
    assert b"42" not in data
    assert "42" in caplog.text


def test_a_database_that_is_away_is_503(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_args: object, **_kwargs: object) -> None:
        raise errors.UnavailableError("the database does not answer")

    monkeypatch.setattr(type(web.state.database), "read", away)
    assert _ask(web, "GET", "/v1/devices")[0] == 503


def test_every_error_has_a_status() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, OutriderError):
            status = status_of(kind("x"))
            assert 400 <= status < 600
            assert (status >= 500) == (kind.exit_code == 70 or not issubclass(kind, errors.BadInputError))


def test_health_says_which_broker_runs(web: Any) -> None:
    assert web.client.healthy()
    assert web.client.health().broker == "fake"


def test_the_description_is_served_and_complete(web: Any) -> None:
    status, data = _ask(web, "GET", "/openapi.json")
    assert status == 200
    described = json.loads(data)
    assert described["openapi"].startswith("3.1")
    schemas = described["components"]["schemas"]
    for name in set(_references(described)):
        assert name in schemas, name
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], path
            assert operation["summary"], path
            expects_body = method == "post"
            assert ("requestBody" in operation) == expects_body, path
    identifiers = [op["operationId"] for ops in described["paths"].values() for op in ops.values()]
    assert len(identifiers) == len(set(identifiers))


def test_answers_match_their_description(web: Any) -> None:
    web.published()
    web.enrol()
    described = json.loads(_ask(web, "GET", "/openapi.json")[1])
    for path in ("/v1/devices", "/v1/bundles", "/v1/releases", "/v1/audit", "/v1/health"):
        schema = described["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        answer = json.loads(_ask(web, "GET", path)[1])
        assert answer
        jsonschema.validate(answer, {**schema, "components": described["components"]})


def test_the_documentation_page_is_served(web: Any) -> None:
    status, data = _ask(web, "GET", "/docs")
    assert status == 200
    page = data.decode()
    described = json.loads(_ask(web, "GET", "/openapi.json")[1])
    for path in described["paths"]:
        assert f"<code>{path}</code>" in page
    for name in described["components"]["schemas"]:
        assert f'id="{name}"' in page
    assert "<script" not in page
    assert "http://" not in page.replace(web.url, "")
    assert "https://" not in page


@pytest.mark.parametrize("name", ROUTES)
def test_the_table_of_routes_resolves(name: str) -> None:
    assert pkgutil.resolve_name(name).router.routes


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"].rsplit("/", 1)[1]] if isinstance(node.get("$ref"), str) else []
        return own + [name for value in node.values() for name in _references(value)]
    if isinstance(node, list):
        return [name for value in node for name in _references(value)]
    return []
