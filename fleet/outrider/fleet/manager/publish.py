"""Keeps the retained desired documents on the broker equal to the database's.

Which revision the broker acknowledged is remembered in memory alone: after a start everything is published again,
which costs a device one comparison, and so needs no trust in what the broker still holds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from outrider.fleet.db import DesiredRow, DeviceRow
from outrider.fleet.manager.link import Done
from outrider.runtime.errors import UnavailableError
from outrider.runtime.messages import EPOCH_TOPIC, Address

log = logging.getLogger(__name__)

DOCUMENTS_PER_S = 2000
OUTSTANDING = 500
CLEARED = 0
# The sentinel's retained copy comes right after the subscription; longer than this and it is taken for missing.
SENTINEL_S = 1.5
# A broker that is killed may forget what it acknowledged in the last second (Mosquitto saves that often).
FORGETFUL_S = 30.0


class Channel(Protocol):
    """What the publisher needs of the link."""

    @property
    def connected(self) -> bool:
        """Whether the broker accepts publishes."""

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None, done: Done | None = None
    ) -> None:
        """Publish; `done` gets the broker's answer."""


class Publisher:
    """Publishes what differs, at a bounded rate. `epoch` marks the broker's state as this fleet's.

    `step` belongs to one thread; `up`, `epoch_seen` and the answers of the broker come from another.
    """

    def __init__(
        self,
        channel: Channel,
        epoch: bytes,
        *,
        on_room: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._epoch = epoch
        self._on_room = on_room
        self._clock = clock
        self._sent: dict[str, int] = {}  # device -> revision that is on its way to the broker or there
        self._sent_at: dict[str, float] = {}
        self._open: dict[str, int] = {}  # device -> revision without an answer yet
        self._connected_at: float | None = None
        self._epoch_ok = False
        self._mark: Literal["", "due", "sent"] = ""  # of the sentinel, while it is missing
        self._tokens = float(OUTSTANDING)
        self._refilled = clock()

    # From paho's thread ---------------------------------------------------------------------------------------------

    def up(self) -> None:
        """A new connection: what the broker holds must be found out again."""
        self._epoch_ok, self._mark = False, ""
        self._connected_at = self._clock()

    def epoch_seen(self, payload: bytes) -> None:
        """The sentinel was read."""
        self._epoch_ok = self._epoch_ok or payload == self._epoch

    # From the tick ------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """The broker may have lost everything: publish it all again."""
        self._sent.clear()
        self._sent_at.clear()

    def forget_recent(self) -> None:
        """The connection was lost, the broker perhaps killed: publish again what it acknowledged just before."""
        horizon = self._clock() - FORGETFUL_S
        for device in [device for device, at in self._sent_at.items() if at > horizon]:
            self._sent.pop(device, None)
            del self._sent_at[device]

    def lost_state(self) -> bool:
        """Whether the sentinel is missing on this connection. True once; the answer leads to `forget`."""
        if self._connected_at is None or self._epoch_ok or self._mark:
            return False
        if self._clock() < self._connected_at + SENTINEL_S:
            return False
        self._mark = "due"
        return True

    def step(self, session: Session) -> bool:
        """Publish documents that the broker has not got. True: there are more."""
        if not self._channel.connected:
            return False
        due = []
        for device, tenant, revision, flagged in session.execute(
            select(DeviceRow.id, DeviceRow.tenant, DeviceRow.revision_desired, DeviceRow.flagged)
        ):
            wanted = CLEARED if flagged is not None else revision
            # A device without a document has nothing to clear; where it is flagged, an older fleet's may be there.
            known = self._sent.get(device, None if wanted or flagged is not None else CLEARED)
            if known != wanted:
                due.append((Address(tenant=tenant, device=device), wanted))
        room = self._room()
        try:
            now_due = due[:room]
            documents = _documents(session, now_due)
            for address, revision in now_due:
                self._publish(address, revision, documents.get((address.device, revision), b""))
            if not due and not self._open and self._mark == "due":
                self._mark = "sent"
                self._channel.publish(EPOCH_TOPIC, self._epoch, retain=True, done=self._marked)
        except UnavailableError as e:
            log.warning("could not publish desired documents, they follow after the next connection: %s", e)
            return False
        return len(due) > room

    def _publish(self, address: Address, revision: int, payload: bytes) -> None:
        assert bool(payload) == (revision != CLEARED)  # revision_desired is only raised together with its document
        device = address.device
        # Revisions only rise, except that a document may be cleared and published again as it was.
        assert revision == CLEARED or revision >= self._sent.get(device, 0)
        self._sent[device], self._sent_at[device] = revision, self._clock()
        self._open[device] = revision
        self._tokens -= 1
        try:
            self._channel.publish(
                address.down("desired"), payload, retain=True, done=lambda ok: self._answered(device, revision, ok)
            )
        except UnavailableError:
            self._answered(device, revision, ok=False)
            raise

    def _answered(self, device: str, revision: int, ok: bool) -> None:
        if self._open.get(device) == revision:
            del self._open[device]
        if not ok and self._sent.get(device) == revision:
            self._sent.pop(device, None)
        if len(self._open) == OUTSTANDING // 2 or not self._open:
            self._on_room()

    def _marked(self, ok: bool) -> None:
        self._epoch_ok = self._epoch_ok or ok
        self._mark = "" if ok else "due"

    def _room(self) -> int:
        now = self._clock()
        self._tokens = min(OUTSTANDING, self._tokens + (now - self._refilled) * DOCUMENTS_PER_S)
        self._refilled = now
        return max(0, min(int(self._tokens), OUTSTANDING - len(self._open)))


def _documents(session: Session, wanted: Sequence[tuple[Address, int]]) -> dict[tuple[str, int], bytes]:
    """The envelopes of these devices' newest documents, by device and revision."""
    newest = select(DesiredRow.device, DesiredRow.rev, DesiredRow.envelope).join(
        DeviceRow, and_(DeviceRow.id == DesiredRow.device, DeviceRow.revision_desired == DesiredRow.rev)
    )
    names = [address.device for address, revision in wanted if revision != CLEARED]
    rows = session.execute(newest.where(DesiredRow.device.in_(names)))
    return {(device, rev): envelope.encode() for device, rev, envelope in rows}
