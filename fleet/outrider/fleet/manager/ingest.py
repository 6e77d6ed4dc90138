"""From the broker into the database: batches of messages, each applied once, acknowledged after the commit.

One thread, so that messages of a device are applied in the order in which they came, and row ids rise with it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from outrider.fleet.db import Database, DeviceRow
from outrider.fleet.manager.apply import Known, apply_event, apply_predictions, apply_reported, apply_stat
from outrider.fleet.manager.identity import PresenceBook
from outrider.fleet.manager.link import Incoming
from outrider.runtime.errors import BadMessageError, Fault
from outrider.runtime.messages import (
    Address,
    BlockRequest,
    Event,
    Predictions,
    Presence,
    Reply,
    Reported,
    Stat,
    decode,
    parse_topic,
)

log = logging.getLogger(__name__)

BATCH = 256
RETRY_S = 2.0
RECORDS: dict[str, type[msgspec.Struct]] = {
    "presence": Presence,
    "reported": Reported,
    "evt": Event,
    "stat": Stat,
    "pred": Predictions,
    "rsp": Reply,
    "blk": BlockRequest,
}


@dataclass(frozen=True)
class Parsed:
    """A decoded message and who sent it."""

    address: Address
    record: msgspec.Struct
    again: bool


class Ingest:
    """Takes messages in. `on_block` is given block requests, `on_change` is called after each commit.

    `online_since` is when each device was first known to be online in this process, seconds since the epoch.
    """

    def __init__(
        self,
        database: Database,
        *,
        ack: Callable[[Incoming], None],
        on_block: Callable[[Address, BlockRequest], None],
        on_change: Callable[[], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self.online_since: dict[str, float] = {}
        self._database = database
        self._ack = ack
        self._on_block = on_block
        self._on_change = on_change
        self._now = now
        self._presence = PresenceBook()
        self._queue: queue.SimpleQueue[Incoming | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self) -> None:
        """Begin to take in what was put."""
        self._thread.start()

    def stop(self) -> None:
        """End after the present batch; what is left is not acknowledged, so the broker keeps it."""
        self._stopping.set()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def put(self, message: Incoming) -> None:
        """Take a message in soon. Never blocks; the receive maximum bounds how many wait."""
        self._queue.put(message)

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return self._queue.empty()

    def _run(self) -> None:
        while not self._stopping.is_set():
            batch = self._next_batch()
            while batch and not self._stopping.is_set():
                try:
                    self._take(batch)
                except Fault as e:
                    log.error("cannot store what devices sent, trying again: %s", e)
                    self._stopping.wait(RETRY_S)
                else:
                    break

    def _next_batch(self) -> list[Incoming]:
        batch = [self._queue.get()]
        while len(batch) < BATCH and not self._queue.empty():
            batch.append(self._queue.get())
        return [message for message in batch if message is not None]

    def _take(self, batch: list[Incoming]) -> None:
        parsed = []
        for item in filter(None, map(self._parse, batch)):
            if isinstance(item.record, BlockRequest):
                self._on_block(item.address, item.record)
            else:
                parsed.append(item)
        try:
            if parsed:
                self._store(parsed)
        except Fault:
            raise
        except Exception:
            # One of them cannot be stored, whatever it is: find it, and let the others in.
            log.exception("a batch of %d messages could not be stored; storing them one by one", len(parsed))
            for item in parsed:
                self._store_alone(item)
        for message in batch:
            self._ack(message)
        if parsed:
            self._on_change()

    def _parse(self, message: Incoming) -> Parsed | None:
        try:
            address, direction, kind = parse_topic(message.topic)
            record = RECORDS.get(kind)
            if direction != "up" or record is None:
                raise BadMessageError(f"there is no message {kind[:100]!r}")
            return Parsed(address, decode(message.payload, record), message.again)
        except BadMessageError as e:
            log.warning("ignored a message on %s: %s", message.topic[:200], e)
            return None

    def _store_alone(self, item: Parsed) -> None:
        try:
            self._store([item])
        except Fault:
            raise
        except Exception:
            log.exception("dropped a %s of %s", type(item.record).__name__, item.address.device)

    def _store(self, items: Sequence[Parsed]) -> None:
        now = self._now()
        presence: dict[str, bool] = {}
        with self._database.session() as session, session.no_autoflush:
            known = Known(session, [(item.address.device, item.record) for item in items])
            for item in items:
                device = known.devices.get(item.address.device)
                if device is None or device.tenant != item.address.tenant:
                    log.warning("ignored a message of the unknown device %s", item.address.device)
                    continue
                device.last_seen = now
                self._apply(known, device, item, now)
                presence[device.id] = device.online
        for identifier, online in presence.items():
            if online:
                self.online_since.setdefault(identifier, now)
            else:
                self.online_since.pop(identifier, None)

    def _apply(self, known: Known, device: DeviceRow, item: Parsed, now: float) -> None:
        record: Any = item.record
        if isinstance(record, Presence):
            self._presence.apply(known.session, device, record, again=item.again, now=now)
        elif isinstance(record, Reported):
            apply_reported(known, device, record, now=now)
        elif isinstance(record, Event):
            apply_event(known, device, record, now=now)
        elif isinstance(record, Stat):
            apply_stat(known, device, record, now=now)
        elif isinstance(record, Predictions):
            apply_predictions(known, device, record, now=now)
        elif isinstance(record, Reply):
            log.info("%s replied to command %s", device.id, record.id[:64], extra={"ok": record.ok})
