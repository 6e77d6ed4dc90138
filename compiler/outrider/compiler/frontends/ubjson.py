"""UBJSON, XGBoost's binary form of JSON: bytes to dicts, lists, numbers and text, trusting none of them."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from outrider.runtime.errors import BadModelError

_NUMBERS = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_WORDS = {b"Z": None, b"T": True, b"F": False}
_COUNTS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q"}
_MAX_DEPTH = 64


class Reader:
    """A position in a file's bytes that never leaves them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        """The next bytes. Raises BadModelError where there are fewer."""
        start = self.position
        self.skip(size)
        return self._data[start : self.position]

    def skip(self, size: int) -> None:
        """Go past bytes, without copying them. Raises BadModelError where there are fewer."""
        if size < 0 or size > len(self._data) - self.position:
            raise BadModelError("it ends too early")
        self.position += size

    def number(self, form: str) -> int:
        """The next integer, of a `struct` format."""
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def finish(self) -> None:
        """Raises BadModelError where bytes are left."""
        if self.position != len(self._data):
            raise BadModelError("it goes on after its end")


def read_ubjson(data: bytes) -> dict[str, Any]:
    """The object that the bytes are; arrays of one number type become numpy arrays, copies in native order.

    Raises BadModelError where the bytes are not one whole UBJSON object.
    """
    reader = Reader(data)
    if reader.take(1) != b"{":
        raise BadModelError("it is not UBJSON")
    found = _read_object(reader, 0)
    reader.finish()
    return found


def _read_value(reader: Reader, kind: bytes, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise BadModelError("it is nested too deeply")
    if kind in (b"S", b"H"):
        return _text(reader, _count(reader))
    if kind == b"C":
        return _text(reader, 1)
    if kind == b"{":
        return _read_object(reader, depth + 1)
    if kind == b"[":
        return _read_array(reader, depth + 1)
    if kind in _NUMBERS:
        return _numbers(reader, kind, 1)[0].item()
    if kind in _WORDS:
        return _WORDS[kind]
    raise BadModelError(f"it holds an unknown kind of value, {kind!r}")


def _read_object(reader: Reader, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while True:
        marker = reader.take(1)
        if marker == b"}":
            return found
        if marker not in _COUNTS:
            raise BadModelError("an object's key has no length")
        key = _text(reader, reader.number(_COUNTS[marker]))
        found[key] = _read_value(reader, reader.take(1), depth)


def _read_array(reader: Reader, depth: int) -> Any:
    marker = reader.take(1)
    kind = None
    if marker == b"$":
        kind = reader.take(1)
        marker = reader.take(1)
        if marker != b"#":
            raise BadModelError("a typed array has no length")
    if marker == b"#":
        count = _count(reader)
        if kind is not None and kind in _NUMBERS:
            return _numbers(reader, kind, count)
        return [_read_value(reader, kind or reader.take(1), depth) for _ in range(count)]
    values = []
    while marker != b"]":
        values.append(_read_value(reader, marker, depth))
        marker = reader.take(1)
    return values


def _numbers(reader: Reader, kind: bytes, count: int) -> Any:
    dtype = np.dtype(_NUMBERS[kind])
    return np.frombuffer(reader.take(count * dtype.itemsize), dtype).astype(dtype.newbyteorder("="))


def _text(reader: Reader, size: int) -> str:
    try:
        return reader.take(size).decode()
    except UnicodeDecodeError as e:
        raise BadModelError("it holds text that is not UTF-8") from e


def _count(reader: Reader) -> int:
    marker = reader.take(1)
    if marker not in _COUNTS:
        raise BadModelError("a length is not a number")
    count = reader.number(_COUNTS[marker])
    if count < 0:
        raise BadModelError("a length is below zero")
    return count
