"""Presence, and two machines with one identity.

A boot id is new at every start of a device's daemon, so once another boot of the device has been seen online, an
earlier one cannot come back, unless both machines run. The device is then flagged, both boots stay on record, and its
desired state is withheld until an operator decides.
"""

from __future__ import annotations

from collections import OrderedDict

from sqlalchemy.orm import Session

from outrider.fleet import audit
from outrider.fleet.db import DeviceBootRow, DeviceRow
from outrider.runtime.messages import Presence

DUPLICATE = "duplicate identity"
_REMEMBERED = 20_000


class PresenceBook:
    """Applies presence messages. What it remembers itself only tells a message seen twice from a machine come back.

    A broker delivers again what was not acknowledged in time, and one that was killed may even have forgotten an
    acknowledgement, so a superseded boot alone proves nothing: its message must be new, and either be dated after
    the boot that took its place, or not be the first new one (a device's clock may be wrong by years).
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, Presence], None] = OrderedDict()
        self._returns: dict[str, set[str]] = {}

    def apply(self, session: Session, device: DeviceRow, presence: Presence, *, again: bool, now: float) -> None:
        """Apply one message inside a transaction. `again`: the broker says that it delivered it before."""
        repeated = self._repeated(device.id, presence)
        if not presence.online:
            if presence.boot_id == device.boot_id and presence.session == device.session:
                device.online = False
            return
        boot = session.get(DeviceBootRow, (device.id, presence.boot_id))
        if boot is None:
            self._supersede(session, device)
            session.add(DeviceBootRow(device=device.id, boot_id=presence.boot_id, first_seen=now))
            session.flush()  # so that the next message of this batch finds it
        elif boot.superseded:
            if repeated or again or not self._came_back(session, device, presence):
                return
            self._flag(session, device, presence, now)
            self._supersede(session, device)
            boot.superseded = False
        device.boot_id, device.session, device.online = presence.boot_id, presence.session, True

    def _repeated(self, device: str, presence: Presence) -> bool:
        key = (device, presence)
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def _came_back(self, session: Session, device: DeviceRow, presence: Presence) -> bool:
        if device.flagged is not None:
            return True
        current = session.get(DeviceBootRow, (device.id, device.boot_id)) if device.boot_id else None
        if current is not None and presence.at > current.first_seen:
            return True
        returns = self._returns.setdefault(device.id, set())
        returns.add(presence.session)
        return len(returns) > 1

    @staticmethod
    def _supersede(session: Session, device: DeviceRow) -> None:
        if device.boot_id is None:
            return
        current = session.get(DeviceBootRow, (device.id, device.boot_id))
        if current is not None:
            current.superseded = True

    def _flag(self, session: Session, device: DeviceRow, presence: Presence, now: float) -> None:
        self._returns.pop(device.id, None)
        if device.flagged is not None:
            return
        device.flagged = DUPLICATE
        audit.record(
            session,
            actor="fleet",
            action="device.flag",
            subject=device.id,
            detail={"reason": DUPLICATE, "boots": [presence.boot_id, device.boot_id]},
            now=now,
        )
