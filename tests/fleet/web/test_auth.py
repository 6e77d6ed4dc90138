"""Every route asks for a key unless it is on the list of open ones; keys, roles and their storage."""

from __future__ import annotations

import http.client
import pkgutil
import re
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text

from outrider.fleet.app import create_app
from outrider.fleet.auth import hash_secret, identify
from outrider.fleet.db import Database
from outrider.fleet.routes import ROUTES
from outrider.fleet.routes.wire import Records
from outrider.fleet.service import first_admin_key
from outrider.fleet.settings import FleetSettings
from outrider.runtime.api_client import FleetClient
from outrider.runtime.api_client.connect import read_key_file
from outrider.runtime.errors import BadConfigError, BadInputError, NotFoundError

OPEN = {("GET", "/v1/health"), ("POST", "/v1/enrol")}
FOR_DEVICES = {("GET", "/v1/bundles/{sha256}/content")}


def _routes() -> list[tuple[str, str]]:
    found = []
    for name in ROUTES:
        records: Records = pkgutil.resolve_name(name)
        for route in records.router.routes:
            assert isinstance(route, APIRoute)
            found += [(method, route.path) for method in sorted(route.methods)]
    return found


def _request(url: str, method: str, path: str, key: str | None) -> tuple[int, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    filled = re.sub(r"\{\w+\}", "1", path)
    connection.request(method, filled, body=b"{}" if method == "POST" else None, headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.headers


@pytest.fixture(scope="session")
def all_routes() -> list[tuple[str, str]]:
    return _routes()


def test_the_application_serves_nothing_but_the_table_and_its_documentation(web: Any) -> None:
    app = create_app(web.state)
    paths = set(app.openapi()["paths"])
    assert paths == {path for _, path in _routes()}
    others = {route.path for route in app.routes if hasattr(route, "path") and not route.path.startswith("/v1")}
    assert others == {"/openapi.json", "/docs"}


@pytest.mark.parametrize("key", [None, "", "ork_wrong"])
def test_every_route_denies_strangers(web: Any, key: str | None, all_routes: list[tuple[str, str]]) -> None:
    for method, path in all_routes:
        status, headers = _request(web.url, method, path, key)
        if (method, path) in OPEN:
            assert status != 401, path
        else:
            assert status == 401, path
            assert headers["WWW-Authenticate"] == "Bearer"


def test_every_route_but_the_content_denies_devices(web: Any, all_routes: list[tuple[str, str]]) -> None:
    secret = web.enrol().secret
    for method, path in all_routes:
        if (method, path) in OPEN | FOR_DEVICES:
            continue
        assert _request(web.url, method, path, secret)[0] == 403, path


def test_no_route_denies_the_operator(web: Any, all_routes: list[tuple[str, str]]) -> None:
    for method, path in all_routes:
        assert _request(web.url, method, path, web.key)[0] not in (401, 403, 500) or path == "/v1/bundles", path


def test_other_schemes_are_not_taken(web: Any) -> None:
    connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=10)
    connection.request("GET", "/v1/devices", headers={"Authorization": f"Basic {web.key}"})
    assert connection.getresponse().status == 401
    connection.close()


def test_the_client_says_that_the_key_is_not_known(web: Any) -> None:
    with pytest.raises(BadInputError, match="not known") as caught:
        FleetClient(web.url, "ork_wrong").devices()
    assert "key" in (caught.value.hint or "")


def test_no_secret_is_stored_in_the_clear(web: Any) -> None:
    enrolment = web.enrol()
    token = web.client.create_enrolment_token()
    with web.state.database.engine.connect() as connection:
        dump = "\n".join(connection.connection.driver_connection.iterdump())  # type: ignore[union-attr]
        assert connection.execute(text("select count(*) from api_keys")).scalar() == 1
    for secret in (web.key, enrolment.secret, enrolment.mqtt_password, token):
        assert secret not in dump
    assert hash_secret(web.key) in dump


def test_the_first_key_is_made_once_and_kept_for_its_owner_only(database: Database, tmp_path: Path) -> None:
    settings = FleetSettings(data_dir=tmp_path)
    key = first_admin_key(settings, database)
    assert key is not None
    assert first_admin_key(settings, database) is None
    assert stat.S_IMODE(settings.admin_key_path.stat().st_mode) == 0o600
    assert read_key_file(settings.admin_key_path) == key
    with database.read() as session:
        principal = identify(session, key)
    assert principal is not None
    assert (principal.actor, principal.roles) == ("key:admin", {"operator"})


def test_key_files_that_hold_no_key(tmp_path: Any) -> None:
    with pytest.raises(NotFoundError):
        read_key_file(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(BadConfigError):
        read_key_file(tmp_path / "empty")
