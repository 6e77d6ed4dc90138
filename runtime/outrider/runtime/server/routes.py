"""What the inference API answers: health, metadata, infer. A model's name in the protocol is its slot.

| Method | Path | Answer |
| --- | --- | --- |
| GET | /v2 | server metadata |
| GET | /v2/health/live, /v2/health/ready | alive; every slot serves (503 where none does) |
| GET | /v2/models/{slot}[/versions/{v}] | model metadata |
| GET | /v2/models/{slot}[/versions/{v}]/ready | this slot serves |
| POST | /v2/models/{slot}[/versions/{v}]/infer | inference |

A compiled tree ensemble takes FP64 in place of FP32, and decides on it as the source model does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from outrider.runtime import __version__
from outrider.runtime.bundle.manifest import Signature
from outrider.runtime.calls import rows_of_call
from outrider.runtime.errors import BadInputError, EngineFault, NotFoundError, OutriderError
from outrider.runtime.models import Live, Models
from outrider.runtime.server.protocol import (
    InferRequest,
    InputTensor,
    ModelMetadata,
    TensorMetadata,
    datatype_of,
    decode_request,
    decode_tensor,
    encode_response,
    row_ids,
)
from outrider.runtime.server.wire import BadRequest, Request, Response, error_response, json_response

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outrider.runtime.bundle.manifest import Manifest, TensorSpec

log = logging.getLogger(__name__)

Array = NDArray[Any]

# What a raw column may be sent as, the usual first. Times may be ISO 8601 strings.
_NUMBERS = ("FP64", "FP32", "INT64", "INT32", "INT16", "INT8", "UINT32", "UINT16", "UINT8", "BOOL")
_RAW_TYPES: dict[str, tuple[str, ...]] = {"number": _NUMBERS, "time": (*_NUMBERS, "BYTES"), "string": ("BYTES",)}


class Observer(Protocol):
    """Who is told about what was served: telemetry, and the update's health rules."""

    def served(self, live: Live, ids: Sequence[str], outputs: Mapping[str, Array]) -> None:
        """These rows were predicted."""

    def failed(self, live: Live, error: EngineFault) -> None:
        """The engine failed."""


@dataclass(frozen=True)
class _Call:
    """A parsed path of the API."""

    slot: str
    version: str | None
    verb: str


class Routes:
    """The handler of `HttpServer`. At most `concurrency` inferences run at once; others wait until their deadline."""

    def __init__(self, models: Models, *, observer: Observer | None = None, concurrency: int = 8) -> None:
        self._models = models
        self._observer = observer
        self._gate = threading.BoundedSemaphore(concurrency)
        self._server: dict[str, Callable[[], Response]] = {
            "/v2": self._server_metadata,
            "/v2/health/live": lambda: json_response({"live": True}),
            "/v2/health/ready": self._server_ready,
        }
        self._model: dict[str, Callable[[_Call, Request], Response]] = {
            "": self._model_metadata,
            "ready": self._model_ready,
            "infer": self._infer,
        }

    def __call__(self, request: Request) -> Response:
        """Answer one request; every error of the tree becomes its status and `{"error": …}`."""
        try:
            return self._dispatch(request)
        except NotFoundError as e:
            return error_response(404, str(e))
        except BadRequest as e:
            return error_response(e.status, e.message)
        except BadInputError as e:
            return error_response(400, str(e))
        except OutriderError as e:
            log.error("%s %s failed: %s", request.method, request.path, e)
            return error_response(500, str(e))

    def _dispatch(self, request: Request) -> Response:
        path = request.path.rstrip("/")
        server = self._server.get(path)
        if server is not None:
            return _only("GET", request) or server()
        call = _parse_model_path(path)
        if call is None or call.verb not in self._model:
            raise NotFoundError(f"there is no {request.path[:200]!r}; see /v2")
        return _only("POST" if call.verb == "infer" else "GET", request) or self._model[call.verb](call, request)

    def _server_metadata(self) -> Response:
        return json_response({"name": "outrider", "version": __version__, "extensions": []})

    def _server_ready(self) -> Response:
        ready = bool(self._models.slots())
        return json_response({"ready": ready}, 200 if ready else 503)

    def _model_ready(self, call: _Call, request: Request) -> Response:
        del request
        with self._models.lease(call.slot) as live:
            _check_version(call, live)
            return json_response({"name": call.slot, "ready": True})

    def _model_metadata(self, call: _Call, request: Request) -> Response:
        del request
        with self._models.lease(call.slot) as live:
            _check_version(call, live)
            return json_response(describe(call.slot, live))

    def _infer(self, call: _Call, request: Request) -> Response:
        infer = decode_request(request.body)
        with self._models.lease(call.slot) as live, self._turn(request.deadline):
            _check_version(call, live)
            inputs = _decode_inputs(infer, live.manifest, doubles=live.session.takes_doubles)
            rows = _rows(inputs, live.manifest.signature)
            ids = row_ids(infer, rows)
            try:
                outputs = live.session.run(inputs)
            except EngineFault as e:
                if self._observer is not None:
                    self._observer.failed(live, e)
                raise
            body = encode_response(
                model=call.slot,
                version=live.manifest.version,
                outputs=outputs,
                wanted=[output.name for output in infer.outputs],
                request_id=infer.id,
            )
            if self._observer is not None:
                self._observer.served(live, ids, outputs)
        return Response(status=200, body=body)

    @contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        if not self._gate.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise BadRequest(503, "busy: the deadline passed before the request's turn came")
        try:
            yield
        finally:
            self._gate.release()


def describe(slot: str, live: Live) -> ModelMetadata:
    """A model's metadata: its inputs, the raw columns that can be given in their place, and its outputs."""
    manifest = live.manifest
    signature = manifest.signature
    raw: tuple[TensorMetadata, ...] = ()
    if manifest.features is not None:
        raw = tuple(
            TensorMetadata(
                name=column.name, datatype=_RAW_TYPES[column.kind][0], shape=(-1,), parameters={"group": "raw"}
            )
            for column in manifest.features.columns
        )
    return ModelMetadata(
        name=slot,
        versions=(manifest.version,),
        platform="outrider",
        inputs=tuple(_tensor(spec, {"group": "model"} if raw else {}) for spec in signature.inputs) + raw,
        outputs=tuple(_tensor(spec, {}) for spec in signature.outputs),
        parameters={"model": manifest.name, "bundle": live.sha256, "target": manifest.target},
    )


def _tensor(spec: TensorSpec, parameters: dict[str, str]) -> TensorMetadata:
    shape = tuple(-1 if size is None else size for size in spec.shape)
    return TensorMetadata(name=spec.name, datatype=datatype_of(spec.dtype), shape=shape, parameters=parameters)


def _parse_model_path(path: str) -> _Call | None:
    """`/v2/models/{slot}[/versions/{v}][/{verb}]`, or None."""
    parts = path.split("/")
    if len(parts) < 4 or parts[:3] != ["", "v2", "models"] or not parts[3]:
        return None
    slot, rest, version = parts[3], parts[4:], None
    if len(rest) >= 2 and rest[0] == "versions":
        version, rest = rest[1], rest[2:]
    if len(rest) > 1:
        return None
    return _Call(slot=slot, version=version, verb=rest[0] if rest else "")


def _only(method: str, request: Request) -> Response | None:
    if request.method == method:
        return None
    refusal = error_response(405, f"{request.path[:200]} answers {method}, not {request.method}")
    return Response(status=405, body=refusal.body, headers=(("Allow", method),))


def _check_version(call: _Call, live: Live) -> None:
    if call.version is not None and call.version != live.manifest.version:
        raise NotFoundError(f"slot {call.slot!r} serves version {live.manifest.version!r}, not {call.version[:128]!r}")


def _decode_inputs(infer: InferRequest, manifest: Manifest, *, doubles: bool) -> dict[str, Array]:
    """The request's arrays, with datatypes checked where the protocol can say it better than the session."""
    wide = {"float32": ("FP64",)} if doubles else {}
    model = {spec.name: (datatype_of(spec.dtype), *wide.get(spec.dtype, ())) for spec in manifest.signature.inputs}
    raw = {} if manifest.features is None else {c.name: _RAW_TYPES[c.kind] for c in manifest.features.columns}
    return {tensor.name: _decode_input(tensor, model, raw) for tensor in infer.inputs}


def _decode_input(
    tensor: InputTensor, model: Mapping[str, tuple[str, ...]], raw: Mapping[str, tuple[str, ...]]
) -> Array:
    accepted = model.get(tensor.name) or raw.get(tensor.name)
    if accepted is None:
        known = ", ".join([*model, *raw])
        raise BadRequest(400, f"there is no input {tensor.name[:128]!r}, there are {known}")
    if tensor.datatype not in accepted:
        raise BadRequest(400, f"input {tensor.name!r} takes {accepted[0]}, got {tensor.datatype[:32]!r}")
    array = decode_tensor(tensor)
    if tensor.name in model and array.dtype.hasobject and any(value is None for value in array.flat):
        raise BadRequest(400, f"input {tensor.name!r}: only raw columns may hold null in place of a string")
    return array


def _rows(inputs: Mapping[str, Array], signature: Signature) -> int:
    """How many rows are asked about; what does not fit the signature is refused by the session."""
    if not signature.batched:
        return rows_of_call(signature) or 1
    first = next(iter(inputs.values()))
    return len(first) if first.ndim else 1
