"""Signed integers as zigzag varints: 7 bits a byte, small magnitudes first. Vectorised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadMessageError

MAX_VARINT_BYTES = 10
_ONE = np.uint64(1)
_SEVEN = np.uint64(7)


def encode_varints(values: NDArray[np.int64]) -> bytes:
    """Bytes of the values [n], one after the other."""
    signed = values.astype(np.int64)
    zigzag = ((signed << np.int64(1)) ^ (signed >> np.int64(63))).view(np.uint64)
    groups = np.zeros((zigzag.size, MAX_VARINT_BYTES), np.uint8)
    used = np.zeros((zigzag.size, MAX_VARINT_BYTES), np.bool_)
    rest = zigzag.copy()
    for i in range(MAX_VARINT_BYTES):
        used[:, i] = True if i == 0 else rest > 0
        groups[:, i] = (rest & np.uint64(0x7F)).astype(np.uint8)
        rest >>= _SEVEN
    groups[:, :-1] |= np.where(used[:, 1:], np.uint8(0x80), np.uint8(0))
    return groups[used].tobytes()


def decode_varints(data: bytes, count: int) -> NDArray[np.int64]:
    """Exactly `count` values. Raises BadMessageError when the bytes hold fewer, more, or an over-long one."""
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    if ends.size != count or (count and ends[-1] != octets.size - 1) or (not count and octets.size):
        raise BadMessageError(f"expected {count} integers, found {ends.size}")
    starts = np.concatenate([[0], ends[:-1] + 1]) if count else ends
    lengths = ends - starts + 1
    longest = int(lengths.max(initial=0))
    if longest > MAX_VARINT_BYTES:
        raise BadMessageError("an integer is longer than 64 bits")
    zigzag = np.zeros(count, np.uint64)
    for i in range(longest):
        has = lengths > i
        octet = octets[starts[has] + i]
        if i == MAX_VARINT_BYTES - 1 and octet.max() > 1:
            raise BadMessageError("an integer is longer than 64 bits")
        zigzag[has] |= (octet & 0x7F).astype(np.uint64) << np.uint64(7 * i)
    return (zigzag >> _ONE).view(np.int64) ^ -(zigzag & _ONE).view(np.int64)
