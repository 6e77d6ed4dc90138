"""Blocks of bundles over MQTT, for devices that cannot reach the HTTP API.

Requests wait in a bounded queue and are served in turns, one block a device, so that no download holds up another.
What does not fit is dropped: a device asks again for what did not come.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import select

from outrider.fleet.db import BundleRow, Database, DeploymentRow
from outrider.fleet.manager.publish import Channel
from outrider.runtime.errors import OutriderError, StorageError
from outrider.runtime.messages import BLOCK_BYTES, KINDS, Address, Block, BlockRequest, encode

log = logging.getLogger(__name__)

MAX_WAITING = 4096
MAX_WAITING_PER_DEVICE = 32
MAX_BLOCKS = 256  # of one request
OUTSTANDING = 16
BYTES_PER_S = 128 * 1024 * 1024
PERMISSION_S = 60.0


@dataclass(frozen=True)
class _Run:
    """Consecutive blocks that a device has asked for, `index` being the next one."""

    address: Address
    sha256: str
    index: int
    end: int


class BlockServer:
    """Serves block requests on a thread of its own. A device is served only bundles that it was given."""

    def __init__(self, database: Database, folder: Path, channel: Channel) -> None:
        self._database = database
        self._folder = folder
        self._channel = channel
        self._condition = threading.Condition()
        self._waiting: OrderedDict[tuple[str, str, int], _Run] = OrderedDict()
        self._slots = threading.Semaphore(OUTSTANDING)
        self._permitted: dict[tuple[str, str], tuple[float, Path | None]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="blocks", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End; requests that wait are dropped."""
        self._stopping.set()
        with self._condition:
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def request(self, address: Address, request: BlockRequest) -> None:
        """Take a request in. Never blocks."""
        if request.index < 0 or request.n < 1:
            log.warning("ignored a request of %s for no blocks", address.device)
            return
        run = _Run(address, request.sha256, request.index, request.index + min(request.n, MAX_BLOCKS))
        key = (address.device, request.sha256, request.index)
        with self._condition:
            mine = sum(1 for device, _sha, _index in self._waiting if device == address.device)
            if key not in self._waiting and (len(self._waiting) >= MAX_WAITING or mine >= MAX_WAITING_PER_DEVICE):
                log.warning("dropped a block request of %s: too many wait", address.device)
                return
            self._waiting[key] = run
            self._condition.notify()

    def _run(self) -> None:
        while (run := self._next()) is not None:
            try:
                self._serve(run)
            except OutriderError as e:
                log.warning("could not send a block to %s: %s", run.address.device, e)
            except Exception:
                log.exception("could not send a block to %s", run.address.device)

    def _next(self) -> _Run | None:
        """The next block's run; what is left of the run goes to the end of the queue."""
        with self._condition:
            while not self._waiting and not self._stopping.is_set():
                self._condition.wait()
            if self._stopping.is_set():
                return None
            key, run = self._waiting.popitem(last=False)
            if run.index + 1 < run.end:
                self._waiting[key] = replace(run, index=run.index + 1)
            return run

    def _serve(self, run: _Run) -> None:
        path = self._path(run.address.device, run.sha256)
        data = b"" if path is None else _read_block(path, run.index)
        if not data:
            self._drop(run)
            return
        while not self._slots.acquire(timeout=0.5):
            if self._stopping.is_set() or not self._channel.connected:
                return
        try:
            self._channel.publish(
                run.address.down(f"blk/{run.sha256}"),
                encode(Block(v=1, index=run.index, data=data)),
                expiry_s=KINDS["blk"].expiry_s,
                done=self._answered,
            )
        except BaseException:
            self._slots.release()
            raise
        self._stopping.wait(len(data) / BYTES_PER_S)

    def _answered(self, _ok: bool) -> None:
        self._slots.release()

    def _drop(self, run: _Run) -> None:
        """There are no further blocks, or the device may not have them."""
        with self._condition:
            for key, waiting in list(self._waiting.items()):
                if (waiting.address, waiting.sha256) == (run.address, run.sha256) and waiting.index > run.index:
                    del self._waiting[key]

    def _path(self, device: str, sha256: str) -> Path | None:
        """The bundle's file where the device may have it; asked of the database once a minute."""
        now = time.monotonic()
        known = self._permitted.get((device, sha256))
        if known is not None and now < known[0]:
            return known[1]
        with self._database.read() as session:
            query = (
                select(BundleRow.path)
                .join(DeploymentRow, DeploymentRow.bundle == BundleRow.sha256)
                .where(BundleRow.sha256 == sha256, DeploymentRow.device == device)
                .limit(1)
            )
            found = session.scalars(query).first()
        if found is None:
            log.warning("refused %s blocks of %s, which it was not given", device, sha256[:16])
        if len(self._permitted) > MAX_WAITING:
            self._permitted.clear()
        path = None if found is None else self._folder / found
        # A refusal is short: the deployment may be made the next moment.
        self._permitted[device, sha256] = (now + (PERMISSION_S if path else 1.0), path)
        return path


def _read_block(path: Path, index: int) -> bytes:
    """One block; empty past the end. Raises StorageError."""
    try:
        with path.open("rb") as file:
            file.seek(index * BLOCK_BYTES)
            return file.read(BLOCK_BYTES)
    except OSError as e:
        raise StorageError(f"cannot read {path}: {e.strerror}") from e
