"""A bundle that is being fetched: a file of full size and a bitmap of the blocks that are safely in it.

A block's bit is set only after its bytes were flushed to the disk, so what the bitmap says survives a power cut, and
a restart fetches at most the blocks that were not flushed yet (`FLUSH_BLOCKS`) and those in flight.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from outrider.runtime.durable import Checkpoint, fsync_folder, no_checkpoint, storage_errors
from outrider.runtime.errors import StorageError, StorageFullError
from outrider.runtime.messages import BLOCK_BYTES

FLUSH_BLOCKS = 8
MARGIN_BYTES = 1 << 20
"""What must stay free beside a bundle, for the journal and the system."""
_CHUNK = 1 << 20


def allocated_bytes(part: Path) -> int:
    """How much of the disk a file has been given already, 0 where there is none."""
    try:
        return part.stat().st_blocks * 512
    except OSError:
        return 0


class BlockFile:
    """The blocks of one bundle of `size` bytes at `part`, with the bitmap at `map_path`. Use as a context manager.

    Opening it reserves the whole size on the disk. Raises StorageFullError (nothing is left behind that was not
    there before) or StorageError. Belongs to one thread.
    """

    def __init__(self, part: Path, map_path: Path, size: int, *, checkpoint: Checkpoint = no_checkpoint) -> None:
        self._part, self._map, self.size = part, map_path, size
        self._checkpoint = checkpoint
        self.count = -(-size // BLOCK_BYTES)
        self._unflushed: list[int] = []
        with storage_errors("reserve space for the bundle"):
            self._bits = self._resume()
            self._file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._reserve()
            with storage_errors("keep the fetch's progress"):
                self._map_file = self._open_map()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> BlockFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        """Whether every block was written."""
        return all(self.has(index) for index in range(self.count))

    def has(self, index: int) -> bool:
        """Whether a block was written."""
        return bool(self._bits[index // 8] >> (index % 8) & 1) or index in self._unflushed

    def length(self, index: int) -> int:
        """Bytes of a block: all are `BLOCK_BYTES` long but the last."""
        return min(BLOCK_BYTES, self.size - index * BLOCK_BYTES)

    def missing(self) -> list[int]:
        """The blocks that are not there yet, in order."""
        return [index for index in range(self.count) if not self.has(index)]

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Runs of missing blocks as (first, count)."""
        first = None
        for index in range(self.count + 1):
            gone = index < self.count and not self.has(index)
            if gone and first is None:
                first = index
            elif not gone and first is not None:
                yield first, index - first
                first = None

    def write(self, index: int, data: bytes | bytearray) -> None:
        """Write one whole block; one that is there already stays. Raises StorageError."""
        if self.has(index):
            return
        if len(data) != self.length(index):
            raise StorageError(f"block {index} has {len(data)} bytes, not {self.length(index)}")
        with storage_errors("write a block of the bundle"):
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, memoryview(data)[written:], index * BLOCK_BYTES + written)
        self._unflushed.append(index)
        self._checkpoint("fetch.block")
        if len(self._unflushed) >= FLUSH_BLOCKS:
            self.flush()

    def flush(self) -> None:
        """Bring the blocks, and then the bitmap, to the disk."""
        if not self._unflushed:
            return
        with storage_errors("flush the bundle"):
            os.fdatasync(self._file)
            self._checkpoint("fetch.flushed")
            for index in self._unflushed:
                self._bits[index // 8] |= 1 << (index % 8)
            self._unflushed.clear()
            os.pwrite(self._map_file, self._bits, 0)
            os.fdatasync(self._map_file)
        self._checkpoint("fetch.mapped")

    def sha256(self) -> str:
        """The digest of the whole file, read back from the disk."""
        self.flush()
        digest = hashlib.sha256()
        with storage_errors("read the bundle back"):
            for offset in range(0, self.size, _CHUNK):
                digest.update(os.pread(self._file, min(_CHUNK, self.size - offset), offset))
        return digest.hexdigest()

    def delete(self) -> None:
        """Forget what was fetched."""
        with storage_errors("remove the fetched bundle"):
            self._map.unlink(missing_ok=True)
            self._part.unlink(missing_ok=True)
            fsync_folder(self._part.parent)

    def close(self) -> None:
        """Close the files; what was not flushed is fetched again."""
        os.close(self._file)
        os.close(self._map_file)

    def _resume(self) -> bytearray:
        """The bitmap as it was, if both files fit this bundle; otherwise a fresh one."""
        width = -(-self.count // 8)
        if self._part.exists() and self._part.stat().st_size == self.size and self._map.exists():
            bits = self._map.read_bytes()
            if len(bits) == width:
                return bytearray(bits)
        self._map.unlink(missing_ok=True)
        return bytearray(width)

    def _open_map(self) -> int:
        """The bitmap's file, at its full size, so that keeping the progress needs no more space."""
        handle = os.open(self._map, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(handle, self._bits, 0)
            os.fdatasync(handle)
        except OSError:
            os.close(handle)
            raise
        return handle

    def _reserve(self) -> None:
        """Take the whole size from the file system now, rather than run out of it half-way."""
        try:
            with storage_errors("reserve space for the bundle"):
                if os.fstat(self._file).st_size != self.size:
                    os.ftruncate(self._file, 0)
                if self.size:
                    os.posix_fallocate(self._file, 0, self.size)
                os.fsync(self._file)
                fsync_folder(self._part.parent)
                system = os.fstatvfs(self._file)
            if system.f_bavail * system.f_frsize < MARGIN_BYTES:
                raise StorageFullError(f"a bundle of {self.size} bytes would leave less than {MARGIN_BYTES} bytes free")
        except StorageFullError:
            self._part.unlink(missing_ok=True)
            self._map.unlink(missing_ok=True)
            raise
