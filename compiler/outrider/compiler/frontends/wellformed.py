"""Whether a binary model file is whole, before a library that trusts it blindly reads it.

XGBoost and Treelite read past the end of files that are cut off, and may take the process down with them. These
checks walk a file's structure without building anything.
"""

from __future__ import annotations

import struct

from outrider.runtime.errors import BadModelError

_UBJSON_SIZES = {b"i": 1, b"U": 1, b"I": 2, b"l": 4, b"L": 8, b"d": 4, b"D": 8, b"C": 1, b"Z": 0, b"T": 0, b"F": 0}
_UBJSON_COUNTS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q"}
_MAX_DEPTH = 64

_Items = tuple[int | list[int | str], ...]

_I8, _I32, _I64 = 1, 4, 8
# Treelite 4: what stands in the header and in each tree. A number is a scalar of that many bytes, [number] an array
# that begins with its length as uint64; "v" stands for the model's type of thresholds and leaves.
_HEADER_AFTER_TREES: _Items = (_I32, _I8, _I8, _I32, [_I32], [_I32], [_I32], [_I32], [_I8], 4, 4, [_I64], [_I8], _I32)
_TREE_PER_NODE: _Items = ([_I8], [_I32], [_I32], [_I32], [_I8], ["v"], ["v"], [_I8], [_I8])
_TREE_REST: _Items = (
    ["v"],
    [_I64],
    [_I64],
    [4],
    [_I64],
    [_I64],
    [_I64],
    [_I8],
    [_I64],
    [_I8],
    [_I64],
    [_I8],
    _I32,
    _I32,
)
_VALUE_BYTES = {2: 4, 3: 8}  # float32, float64


class _Reader:
    """A position in a file's bytes that never leaves them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        """The next bytes. Raises BadModelError where there are fewer."""
        if size < 0 or size > len(self._data) - self.position:
            raise BadModelError("it ends too early")
        start, self.position = self.position, self.position + size
        return self._data[start : self.position]

    def skip(self, size: int) -> None:
        """Go past bytes, without copying them."""
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


def check_ubjson(data: bytes) -> None:
    """Raises BadModelError where the bytes are not one whole UBJSON object."""
    reader = _Reader(data)
    if reader.take(1) != b"{":
        raise BadModelError("it is not UBJSON")
    _skip_object(reader, 0)
    reader.finish()


def check_checkpoint(data: bytes) -> None:
    """Raises BadModelError where the bytes are not one whole checkpoint of Treelite 4."""
    reader = _Reader(data)
    major = reader.number("<i")
    reader.skip(2 * _I32)
    threshold, leaf = reader.number("<B"), reader.number("<B")
    if major != 4 or threshold not in _VALUE_BYTES or leaf != threshold:
        raise BadModelError("it is not a checkpoint of Treelite 4")
    value = _VALUE_BYTES[threshold]
    trees = reader.number("<Q")
    for item in _HEADER_AFTER_TREES:
        _skip_item(reader, item, value)
    for _ in range(trees):
        nodes = reader.number("<i")
        reader.skip(_I8)
        for item in _TREE_PER_NODE:
            if _skip_item(reader, item, value) != nodes:
                raise BadModelError("a tree's fields differ in length")
        for item in _TREE_REST:
            _skip_item(reader, item, value)
    reader.finish()


def _skip_item(reader: _Reader, item: int | list[int | str], value: int) -> int:
    """Go past a scalar or an array; returns the array's length."""
    if isinstance(item, int):
        reader.skip(item)
        return 1
    length, size = reader.number("<Q"), item[0]
    reader.skip(length * (size if isinstance(size, int) else value))
    return length


def _skip_value(reader: _Reader, kind: bytes, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise BadModelError("it is nested too deeply")
    if kind in (b"S", b"H"):
        reader.skip(_count(reader))
    elif kind == b"{":
        _skip_object(reader, depth + 1)
    elif kind == b"[":
        _skip_array(reader, depth + 1)
    elif kind in _UBJSON_SIZES:
        reader.skip(_UBJSON_SIZES[kind])
    else:
        raise BadModelError(f"it holds an unknown kind of value, {kind!r}")


def _skip_object(reader: _Reader, depth: int) -> None:
    while True:
        marker = reader.take(1)
        if marker == b"}":
            return
        if marker not in _UBJSON_COUNTS:
            raise BadModelError("an object's key has no length")
        reader.skip(reader.number(_UBJSON_COUNTS[marker]))
        _skip_value(reader, reader.take(1), depth)


def _skip_array(reader: _Reader, depth: int) -> None:
    marker = reader.take(1)
    kind = None
    if marker == b"$":
        kind = reader.take(1)
        marker = reader.take(1)
        if marker != b"#":
            raise BadModelError("a typed array has no length")
    if marker == b"#":
        count = _count(reader)
        if kind is not None and kind in _UBJSON_SIZES:
            reader.skip(count * _UBJSON_SIZES[kind])
            return
        for _ in range(count):
            _skip_value(reader, kind or reader.take(1), depth)
        return
    while marker != b"]":
        _skip_value(reader, marker, depth)
        marker = reader.take(1)


def _count(reader: _Reader) -> int:
    marker = reader.take(1)
    if marker not in _UBJSON_COUNTS:
        raise BadModelError("a length is not a number")
    count = reader.number(_UBJSON_COUNTS[marker])
    if count < 0:
        raise BadModelError("a length is below zero")
    return count
