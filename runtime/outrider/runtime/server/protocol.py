"""Open Inference Protocol v2, JSON tensors: request bodies to arrays, arrays to response bodies.

Data may be flat in row-major order or nested like the shape. JSON has no NaN: in floating tensors, going in and
coming out, `null` stands for it (a missing value); in BYTES it is a missing string.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from outrider.runtime.server.wire import BadRequest

Array = NDArray[Any]

# Protocol datatype -> NumPy dtype; BYTES are strings, held as objects.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
_NAMES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in DATATYPES.items()}
_MAX_DIMENSIONS = 8


class InputTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a request. `data` is decoded once its datatype is known."""

    name: str
    shape: tuple[Annotated[int, Meta(ge=0)], ...]
    datatype: str
    data: msgspec.Raw
    parameters: dict[str, Any] = {}


class RequestedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """An output that the client asks for; without any it gets all."""

    name: str
    parameters: dict[str, Any] = {}


class InferParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Request parameters that are understood here; others are ignored, as the protocol says.

    `ids` gives every row a prediction id of its own.
    """

    ids: tuple[str, ...] | None = None


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an inference request."""

    inputs: tuple[InputTensor, ...]
    id: str | None = None
    parameters: InferParameters = InferParameters()
    outputs: tuple[RequestedOutput, ...] = ()


class OutputTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a response, `data` flat in row-major order."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any]


class InferResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of an inference response."""

    model_name: str
    model_version: str
    outputs: tuple[OutputTensor, ...]
    id: str | None = None


class TensorMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Name, datatype and shape of one input or output; -1 is a free dimension.

    `parameters.group` tells inputs apart where a model takes either raw columns or computed features.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, str] = {}


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a model metadata response."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    parameters: dict[str, str] = {}


_REQUEST = msgspec.json.Decoder(InferRequest)
_FLAT: dict[str, msgspec.json.Decoder[Any]] = {
    "f": msgspec.json.Decoder(list[float | None]),
    "i": msgspec.json.Decoder(list[int]),
    "u": msgspec.json.Decoder(list[int]),
    "b": msgspec.json.Decoder(list[bool]),
    "O": msgspec.json.Decoder(list[str | None]),
}
_ELEMENT: dict[str, type | object] = {
    "f": list[float | None],
    "i": list[int],
    "u": list[int],
    "b": list[bool],
    "O": list[str | None],
}
_WORDS = {"f": "numbers", "i": "integers", "u": "integers", "b": "booleans", "O": "strings"}


def decode_request(body: bytes) -> InferRequest:
    """Parse a request body. Raises BadRequest (400) naming the field."""
    try:
        request = _REQUEST.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise BadRequest(400, f"not an inference request: {e}") from e
    names = [tensor.name for tensor in request.inputs]
    if not names:
        raise BadRequest(400, "the request has no inputs")
    if len(set(names)) != len(names):
        raise BadRequest(400, "the request names an input twice")
    return request


def decode_tensor(tensor: InputTensor) -> Array:
    """The array of one input tensor, in its own datatype and shape. Raises BadRequest (400) naming it."""
    dtype = DATATYPES.get(tensor.datatype)
    if dtype is None:
        raise _bad(tensor, f"datatype {tensor.datatype!r} is not one of {', '.join(DATATYPES)}")
    if len(tensor.shape) > _MAX_DIMENSIONS:
        raise _bad(tensor, f"more than {_MAX_DIMENSIONS} dimensions")
    values = _decode_values(tensor, dtype)
    expected = math.prod(tensor.shape)
    if len(values) != expected:
        raise _bad(tensor, f"shape {list(tensor.shape)} needs {expected} values, data has {len(values)}")
    try:
        return _to_array(tensor, values, dtype).reshape(tensor.shape)
    except (OverflowError, ValueError) as e:
        raise _bad(tensor, f"{tensor.datatype} of shape {list(tensor.shape)} cannot hold the data: {e}") from e


def datatype_of(dtype: str) -> str:
    """The protocol's name of a signature dtype (`float32` -> `FP32`, `string` -> `BYTES`)."""
    return "BYTES" if dtype == "string" else _NAMES[np.dtype(dtype)]


def encode_response(
    *, model: str, version: str, outputs: Mapping[str, Array], wanted: Sequence[str], request_id: str | None
) -> bytes:
    """The response body with the wanted outputs (all where none is named). Raises BadRequest (400) on a wrong name."""
    unknown = [name for name in wanted if name not in outputs]
    if unknown:
        raise BadRequest(400, f"there is no output {unknown[0]!r}, there are {', '.join(outputs)}")
    names = wanted or tuple(outputs)
    return msgspec.json.encode(
        InferResponse(
            model_name=model,
            model_version=version,
            outputs=tuple(encode_tensor(name, outputs[name]) for name in names),
            id=request_id,
        )
    )


def encode_tensor(name: str, array: Array) -> OutputTensor:
    """One output array as a tensor."""
    datatype = _NAMES.get(array.dtype, "BYTES")
    data = array.ravel().tolist()
    if datatype == "BYTES":
        data = [_text(value) for value in data]
    return OutputTensor(name=name, shape=array.shape, datatype=datatype, data=data)


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value is None else str(value)


def row_ids(request: InferRequest, rows: int) -> tuple[str, ...]:
    """The prediction id of each row: `parameters.ids`, else the request's `id` (`id/row` for several rows), else none.

    Raises BadRequest (400) where `ids` does not fit the rows.
    """
    ids = request.parameters.ids
    if ids is not None:
        if len(ids) != rows:
            raise BadRequest(400, f"parameters.ids has {len(ids)} ids for {rows} rows")
        _check_ids(ids)
        return ids
    if not request.id:
        return ()
    ids = (request.id,) if rows == 1 else tuple(f"{request.id}/{row}" for row in range(rows))
    _check_ids(ids[-1:])
    return ids


def _check_ids(ids: Iterable[str]) -> None:
    for text in ids:
        if not 1 <= len(text) <= 128:
            raise BadRequest(400, f"a prediction id has 1 to 128 characters, got {len(text)}")


def _decode_values(tensor: InputTensor, dtype: np.dtype[Any]) -> list[Any]:
    try:
        values: list[Any] = _FLAT[dtype.kind].decode(tensor.data)
    except (msgspec.ValidationError, RecursionError):
        return _decode_nested(tensor, dtype)
    except msgspec.DecodeError as e:
        raise _bad(tensor, f"data is not JSON: {e}") from e
    return values


def _decode_nested(tensor: InputTensor, dtype: np.dtype[Any]) -> list[Any]:
    """Data nested like the shape; also where a flat list's wrong element gets its clear message."""
    try:
        data = msgspec.json.decode(tensor.data)
    except (msgspec.DecodeError, RecursionError) as e:
        raise _bad(tensor, f"data is not JSON: {e}") from e
    flat = data
    if isinstance(data, list) and data and isinstance(data[0], list):
        flat = []
        _flatten(tensor, data, tensor.shape, flat)
    try:
        values: list[Any] = msgspec.convert(flat, _ELEMENT[dtype.kind])
    except msgspec.ValidationError as e:
        raise _bad(tensor, f"{tensor.datatype} data must be {_WORDS[dtype.kind]}: {e}") from e
    return values


def _flatten(tensor: InputTensor, data: Any, shape: tuple[int, ...], into: list[Any]) -> None:
    if not isinstance(data, list) or not shape or len(data) != shape[0]:
        raise _bad(tensor, f"nested data does not have the shape {list(tensor.shape)}")
    if len(shape) == 1:
        into.extend(data)
        return
    for item in data:
        _flatten(tensor, item, shape[1:], into)


def _to_array(tensor: InputTensor, values: list[Any], dtype: np.dtype[Any]) -> Array:
    if dtype.kind != "f":
        return np.array(values, dtype=dtype)
    wide: NDArray[np.float64] = np.array(values, dtype=np.float64)  # None becomes NaN
    if dtype.itemsize == 8:
        return wide
    with np.errstate(over="ignore"):
        narrow: Array = wide.astype(dtype)
    if np.isinf(narrow).any():
        raise _bad(tensor, f"a value is out of range for {tensor.datatype}")
    return narrow


def _bad(tensor: InputTensor, what: str) -> BadRequest:
    return BadRequest(400, f"input {tensor.name[:128]!r}: {what}")
