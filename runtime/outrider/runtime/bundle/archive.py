"""The zip container of a bundle, written and read in one canonical form.

Canonical: entries are stored (never compressed), carry fixed times and no extra fields, lie one after the other
with no gap, and the central directory ends the file. The reader accepts that form alone, so nothing can hide
between entries, before them or behind them, and a file never unpacks to more than its own size. Any zip tool can
open the result.
"""

from __future__ import annotations

import io
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from outrider.runtime.errors import BadBundleError, BundleTooLargeError, UnsafePathError

MAX_BUNDLE_BYTES = 2 << 30  # the whole .orb; below 4 GiB, so zip64 is never needed
MAX_FILE_BYTES = 1 << 30  # one entry
MAX_FILES = 4096
MAX_PATH_BYTES = 255

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_TIME, _DATE = 0, 0x21  # 1980-01-01 00:00, the earliest a zip can say
_VERSION, _MADE_BY = 20, (3 << 8) | 20  # zip 2.0, made on Unix
_MODE = (stat.S_IFREG | 0o644) << 16
_UTF8 = 0x800


@dataclass(frozen=True)
class Entry:
    """One stored file: where its bytes lie in the archive. `offset` and `size` are bytes, `crc` is CRC-32."""

    path: str
    offset: int
    size: int
    crc: int


def check_path(path: str) -> None:
    """Refuse a path that is absolute, leaves the bundle, or means different things on different systems.

    Raises UnsafePathError.
    """
    shown = repr(path[:100])
    if not path or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise UnsafePathError(f"the path {shown} is empty or over {MAX_PATH_BYTES} bytes")
    if path.startswith("/") or "\\" in path or ":" in path:
        raise UnsafePathError(f"the path {shown} is absolute, or holds a backslash or colon")
    if not path.isprintable():
        raise UnsafePathError(f"the path {shown} holds unprintable characters")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise UnsafePathError(f"the path {shown} has an empty part, '.' or '..'")


def pack(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """The archive's bytes, in pieces, with the files in the order given."""
    central: list[bytes] = []
    offset = 0
    for path, data in files.items():
        check_path(path)
        name = path.encode("utf-8")
        flags = 0 if path.isascii() else _UTF8
        crc, size = zlib.crc32(data), len(data)
        common = (_VERSION, flags, 0, _TIME, _DATE, crc, size, size, len(name), 0)
        yield _LOCAL.pack(b"PK\x03\x04", *common) + name
        yield data
        central.append(_CENTRAL.pack(b"PK\x01\x02", _MADE_BY, *common, 0, 0, 0, _MODE, offset) + name)
        offset += _LOCAL.size + len(name) + size
    directory = b"".join(central)
    count = len(central)
    yield directory + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), offset, 0)


def read_index(file: BinaryIO, size: int) -> tuple[Entry, ...]:
    """The entries of an archive of `size` bytes, in file order, each checked against the file itself.

    Nothing declared is trusted: sizes and offsets must add up to the very bytes of the file. Raises BadBundleError
    for anything but the canonical form, BundleTooLargeError for sizes beyond the limits or compressed or overlapping
    entries, UnsafePathError for paths and links.
    """
    if size > MAX_BUNDLE_BYTES:
        raise BundleTooLargeError(f"the file has {size} bytes, over the limit of {MAX_BUNDLE_BYTES}")
    directory, start = _read_directory(file, size)
    entries: list[Entry] = []
    seen: set[str] = set()
    position = expected = 0
    while position < len(directory):
        record, name, position = _central_record(directory, position)
        entry = _read_entry(file, record, name, expected, start)
        if entry.path in seen:
            raise BadBundleError(f"the archive holds {entry.path!r} twice")
        seen.add(entry.path)
        entries.append(entry)
        expected = entry.offset + entry.size
    if expected != start:
        raise BadBundleError("the archive holds bytes that belong to no entry")
    return tuple(entries)


def unpack(data: bytes, *, checksums: bool) -> dict[str, memoryview]:
    """The files of an archive in memory, in file order, as views into it.

    Raises as `read_index` does, and BadBundleError where `checksums` are to hold and one does not.
    """
    view = memoryview(data)
    files = {}
    for entry in read_index(io.BytesIO(data), len(data)):
        files[entry.path] = content = view[entry.offset : entry.offset + entry.size]
        if checksums and zlib.crc32(content) != entry.crc:
            raise BadBundleError(f"the checksum of {entry.path!r} does not hold")
    return files


def _read_directory(file: BinaryIO, size: int) -> tuple[bytes, int]:
    """The central directory and its offset."""
    if size < _END.size:
        raise BadBundleError("not a bundle: the file is too short")
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        raise BadBundleError("not a bundle: the file does not start as a zip archive")
    file.seek(size - _END.size)
    tail = file.read(_END.size)
    if len(tail) != _END.size or tail[:4] != b"PK\x05\x06":
        raise BadBundleError("the bundle is cut short, or something was appended to it")
    _, disk, start_disk, here, total, length, start, comment = _END.unpack(tail)
    if disk or start_disk or here != total or comment or start + length != size - _END.size:
        raise BadBundleError("the bundle's directory does not fit its file")
    if total > MAX_FILES:
        raise BundleTooLargeError(f"the bundle names {total} files, over the limit of {MAX_FILES}")
    if length > total * (_CENTRAL.size + MAX_PATH_BYTES):
        raise BadBundleError("the bundle's directory is longer than its entries")
    file.seek(start)
    directory = file.read(length)
    if len(directory) != length:
        raise BadBundleError("the bundle changed while it was read")
    return directory, start


_Record = tuple[int, ...]


def _central_record(directory: bytes, position: int) -> tuple[_Record, bytes, int]:
    """One record of the directory: its numbers, its name, and where the next one starts."""
    end = position + _CENTRAL.size
    if end > len(directory) or directory[position : position + 4] != b"PK\x01\x02":
        raise BadBundleError("the bundle's directory is damaged")
    record: _Record = _CENTRAL.unpack_from(directory, position)[1:]
    length = record[9]
    if end + length > len(directory):
        raise BadBundleError("the bundle's directory is damaged")
    return record, directory[end : end + length], end + length


def _read_entry(file: BinaryIO, record: _Record, name: bytes, expected: int, limit: int) -> Entry:
    """Check one record against the limits and against the header that stands before its data."""
    made_by, version, flags, method, time, date, crc, packed, size, length, extra, comment, disk, internal = record[:14]
    mode, offset = record[14:]
    path = _decode_path(name)
    if method != 0 or packed != size:
        raise BundleTooLargeError(f"{path!r} is compressed", hint="a bundle holds stored entries only")
    if size > MAX_FILE_BYTES:
        raise BundleTooLargeError(f"{path!r} has {size} bytes, over the limit of {MAX_FILE_BYTES}")
    if not stat.S_ISREG(mode >> 16):
        raise UnsafePathError(f"{path!r} is a link, a folder or a device, not a file")
    canonical = (made_by, version, time, date, extra, comment, disk, internal, mode)
    if canonical != (_MADE_BY, _VERSION, _TIME, _DATE, 0, 0, 0, 0, _MODE) or flags != (0 if path.isascii() else _UTF8):
        raise BadBundleError(f"{path!r} is not stored in the form of a bundle")
    if offset < expected:
        raise BundleTooLargeError(f"{path!r} overlaps another entry")
    data = offset + _LOCAL.size + length
    if offset != expected or data + size > limit:
        raise BadBundleError(f"{path!r} does not lie where the directory says")
    file.seek(offset)
    common = (version, flags, method, time, date, crc, packed, size, length, extra)
    if file.read(_LOCAL.size + length) != _LOCAL.pack(b"PK\x03\x04", *common) + name:
        raise BadBundleError(f"the header of {path!r} differs from the directory")
    return Entry(path, data, size, crc)


def _decode_path(name: bytes) -> str:
    try:
        path = name.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UnsafePathError(f"the path {name[:100]!r} is not UTF-8") from e
    check_path(path)
    return path
