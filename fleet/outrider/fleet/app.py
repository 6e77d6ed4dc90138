"""The HTTP application: routes, the one shape of errors, and the OpenAPI description."""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from outrider.fleet.docs_page import render
from outrider.fleet.routes import ROUTES
from outrider.fleet.routes.wire import Records
from outrider.fleet.state import FleetState
from outrider.runtime import __version__
from outrider.runtime.api_client.types import ErrorBody, ErrorDetail
from outrider.runtime.errors import (
    BadBundleError,
    BadDataError,
    BadInputError,
    BadMessageError,
    ConflictError,
    NotFoundError,
    OutriderError,
    StaleRevisionError,
    StorageError,
    TrustError,
    UnavailableError,
)

log = logging.getLogger(__name__)

# The first class that fits decides.
STATUS: tuple[tuple[type[OutriderError], int], ...] = (
    (NotFoundError, 404),
    (ConflictError, 409),
    (StaleRevisionError, 409),
    (TrustError, 403),
    (BadBundleError, 422),
    (BadMessageError, 422),
    (BadDataError, 422),
    (BadInputError, 400),
    (UnavailableError, 503),
    (StorageError, 503),
    (OutriderError, 500),
)
_HTTP_TYPES = {401: "Unauthorized", 403: "Forbidden", 404: "NotFoundError", 409: "ConflictError"}
_HTTP_HINTS = {401: "give the key with --api-key, OUTRIDER_KEY or an Authorization: Bearer header"}
_ABOUT = """Devices, releases, rollouts, drift and retrain Jobs of one fleet.

Give an API key as `Authorization: Bearer …`; `outrider up` prints one at its first start. Errors are
`{"error": {"type", "message", "hint"}}`. Times are seconds since the epoch, UTC."""


def create_app(state: FleetState) -> FastAPI:
    """The application over `state`. It starts and stops nothing by itself."""
    app = FastAPI(title="Outrider fleet", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None)
    app.state.fleet = state
    components: dict[str, Any] = {}
    for name in ROUTES:
        records: Records = pkgutil.resolve_name(name)
        app.include_router(records.router)
        components.update(records.components)
    app.add_exception_handler(OutriderError, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _crashed)
    app.add_route("/docs", lambda _request: HTMLResponse(render(app.openapi())), include_in_schema=False)
    app.openapi = lambda: _openapi(app, components)  # type: ignore[method-assign]
    return app


def status_of(error: OutriderError) -> int:
    """The HTTP status that stands for an error."""
    return next(status for kind, status in STATUS if isinstance(error, kind))


def _openapi(app: FastAPI, components: Mapping[str, Any]) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        # FastAPI's own validation schemas go: every error has our shape.
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        schema["components"] = {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        }
        app.openapi_schema = schema
    return app.openapi_schema


def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, OutriderError)
    status = status_of(error)
    if status >= 500:
        log.error("%s: %s", type(error).__name__, error)
    return _answer(status, type(error).__name__, error.message, error.hint)


def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _HTTP_TYPES.get(error.status_code, "BadInputError")
    hint = _HTTP_HINTS.get(error.status_code)
    return _answer(error.status_code, kind, str(error.detail), hint, error.headers)


def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    return _answer(422, "BadMessageError", problems)


def _crashed(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(500, "Fault", "the fleet failed while answering; its log says more")


def _answer(
    status: int, kind: str, message: str, hint: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    body = ErrorBody(error=ErrorDetail(type=kind, message=message, hint=hint))
    return Response(
        msgspec.json.encode(body), status_code=status, media_type="application/json", headers=dict(headers or {})
    )
