"""Routes that take and give msgspec records, with an OpenAPI description made from the same records.

FastAPI finds its way by pydantic models; ours are the records that the client shares, so the JSON Schema that goes
into `/openapi.json` is msgspec's, and there is one definition of each message. A route is an ordinary function:

```python
api = Records("devices")

@api.post("/devices/{device}/resolve")
def resolve(device: str, body: Annotated[ReasonRequest, json_body(ReasonRequest)], state: State) -> DeviceInfo:
    ...
```

Every route asks for an operator's key unless it says otherwise.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response, params

from outrider.fleet.auth import OPERATOR, Principal, require_device_or_operator, require_operator
from outrider.fleet.state import FleetState, state_of
from outrider.runtime.api_client.types import ErrorBody
from outrider.runtime.errors import BadMessageError

PREFIX = "/v1"
MAX_JSON_BYTES = 1 << 20  # small, since enrolment takes its body from anybody
MAX_BATCH_BYTES = 32 << 20
REF = "#/components/schemas/{name}"

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
State = Annotated[FleetState, Depends(state_of)]
Operator = Annotated[Principal, Depends(require_operator)]
Caller = Annotated[Principal, Depends(require_device_or_operator)]
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
Count = Annotated[int, Query(ge=1, le=10_000)]
OPEN: tuple[params.Depends, ...] = ()
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


class JsonBody:
    """A dependency that reads the request's body as one record. Raises BadMessageError naming the field.

    `batch`: the body may hold many items, so more is taken in.
    """

    def __init__(self, record: type[Any], *, batch: bool = False) -> None:
        self.record = record
        self._batch = batch
        self._decoder = msgspec.json.Decoder(record)

    async def __call__(self, request: Request) -> Any:
        """The decoded body."""
        data, limit = bytearray(), MAX_BATCH_BYTES if self._batch else MAX_JSON_BYTES
        async for chunk in request.stream():
            data += chunk
            if len(data) > limit:
                raise HTTPException(413, f"the body is over {limit} bytes")
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise BadMessageError(f"not a valid {self.record.__name__}: {e}") from e


def json_body(record: type[Any], *, batch: bool = False) -> Any:
    """Marks a parameter as the request's body; `batch`: one of many items."""
    return Depends(JsonBody(record, batch=batch))


class Records:
    """A router under `/v1`. `components` are the JSON Schemas of all records that its routes take and give."""

    def __init__(self, tag: str) -> None:
        self.router = APIRouter(prefix=PREFIX, tags=[tag])
        self.components: dict[str, Any] = {}

    def get(self, path: str, *, needs: Sequence[params.Depends] = (OPERATOR,)) -> Callable[[F], F]:
        """A route that changes nothing."""
        return self._route("GET", path, needs)

    def post(
        self, path: str, *, needs: Sequence[params.Depends] = (OPERATOR,), status: int = 200, upload: bool = False
    ) -> Callable[[F], F]:
        """A route that changes something; `upload`: the body is a file, which it reads from the request itself."""
        return self._route("POST", path, needs, status, upload=upload)

    def _route(
        self, method: str, path: str, needs: Sequence[params.Depends], status: int = 200, *, upload: bool = False
    ) -> Callable[[F], F]:
        def add(function: F) -> F:
            described = self._describe(typing.get_type_hints(function, include_extras=True), status)
            if needs:
                described["security"] = [{"bearer": []}]
            if upload:
                described["requestBody"] = {"content": _BYTES, "required": True}
            self.router.add_api_route(
                path,
                _answering(function, status),
                methods=[method],
                name=function.__name__,
                operation_id=function.__name__,
                dependencies=list(needs),
                response_model=None,
                status_code=status,
                openapi_extra=described,
            )
            return function

        return add

    def _describe(self, hints: dict[str, Any], status: int) -> dict[str, Any]:
        answer = hints.pop("return")
        if isinstance(answer, type) and issubclass(answer, Response):
            done: dict[str, Any] = {"content": _BYTES, "description": "The bytes."}
        else:
            done = self._content(answer, "Done.")
        described: dict[str, Any] = {"responses": {str(status): done, "default": self._content(ErrorBody, "An error.")}}
        for hint in hints.values():
            for extra in getattr(hint, "__metadata__", ()):
                if isinstance(extra, params.Depends) and isinstance(extra.dependency, JsonBody):
                    described["requestBody"] = {**self._content(extra.dependency.record), "required": True}
        return described

    def _content(self, kind: Any, description: str | None = None) -> dict[str, Any]:
        (schema,), components = msgspec.json.schema_components([kind], ref_template=REF)
        self.components.update(components)
        content: dict[str, Any] = {"content": {"application/json": {"schema": schema}}}
        return {**content, "description": description} if description else content


def _answering(function: Callable[..., Any], status: int) -> Callable[..., Any]:
    """The function with its record encoded as the answer; a Response goes through, None is 204."""

    def encode(result: Any) -> Response:
        if isinstance(result, Response):
            return result
        if result is None:
            return Response(status_code=204)
        return Response(msgspec.json.encode(result), status_code=status, media_type="application/json")

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def answer_later(*args: Any, **kwargs: Any) -> Response:
            return encode(await function(*args, **kwargs))

        return answer_later

    @functools.wraps(function)
    def answer(*args: Any, **kwargs: Any) -> Response:
        return encode(function(*args, **kwargs))

    return answer
