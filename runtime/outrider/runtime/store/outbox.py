"""The outbox: messages that wait on disk until the broker has acknowledged them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence

import msgspec

from outrider.runtime.messages import KINDS
from outrider.runtime.store.database import Database

BUDGET_BYTES = 16 * 1024 * 1024
DROP_ORDER = ("stat", "pred", "rsp")
"""What gives way when the budget is spent: the oldest of the first kind first. Events are never dropped."""

_PRIORITY = {"evt": 0, "rsp": 1}
_OTHERS = 2


class OutMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One waiting message. `kind` is a key of `messages.KINDS`; times are seconds since the epoch, UTC.

    `expires` None: it does not. A message is never dropped for its age here, since a device's clock may jump
    by years; `expires` is for the property that the broker reads.
    """

    id: int
    kind: str
    payload: bytes
    created: float
    expires: float | None


class Outbox:
    """Messages to the fleet in SQLite, under a budget of bytes. Safe to use from several threads.

    Where the budget is spent, the oldest `stat` messages go, then the oldest `pred`, then `rsp`; events never go.
    """

    def __init__(self, database: Database, budget_bytes: int = BUDGET_BYTES) -> None:
        self._database = database
        self._budget = budget_bytes
        self._listeners: list[Callable[[], None]] = []
        self.dropped: dict[str, int] = dict.fromkeys(DROP_ORDER, 0)

    def put(self, kind: str, payload: bytes) -> None:
        """Keep a message until `done`. It is on the disk when this returns. Raises StorageError."""
        self.count_dropped(self._database.write(lambda connection: self.insert(connection, kind, payload)))
        self.notify()

    def insert(self, connection: sqlite3.Connection, kind: str, payload: bytes) -> dict[str, int]:
        """Add a message within a transaction of the caller's; gives how many of each kind were dropped for it.

        After the commit the caller hands that to `count_dropped` and calls `notify`.
        """
        now = time.time()
        expiry = KINDS[kind].expiry_s
        connection.execute(
            "INSERT INTO outbox (priority, kind, payload, size, created, expires) VALUES (?, ?, ?, ?, ?, ?)",
            (_PRIORITY.get(kind, _OTHERS), kind, payload, len(payload), now, None if expiry is None else now + expiry),
        )
        return self._make_room(connection)

    def pending(self, limit: int = 64) -> list[OutMessage]:
        """The messages to send next, events first and then by age."""
        rows = self._database.read(
            lambda connection: connection.execute(
                "SELECT id, kind, payload, created, expires FROM outbox ORDER BY priority, id LIMIT ?", (limit,)
            ).fetchall()
        )
        return [OutMessage(id=r[0], kind=r[1], payload=r[2], created=r[3], expires=r[4]) for r in rows]

    def done(self, *ids: int) -> None:
        """Forget messages that the broker has acknowledged. Unknown ids are fine."""
        self._database.write(
            lambda connection: connection.executemany("DELETE FROM outbox WHERE id = ?", [(one,) for one in ids])
        )

    def bytes_waiting(self) -> int:
        """Payload bytes that wait."""
        return self._database.read(_total)

    def listen(self, callback: Callable[[], None]) -> None:
        """Call `callback` (quick, from any thread) after each new message."""
        self._listeners.append(callback)

    def notify(self) -> None:
        """Tell the listeners that a message was committed."""
        for callback in self._listeners:
            callback()

    def count_dropped(self, dropped: dict[str, int]) -> None:
        """Add to the counts of messages that gave way."""
        for kind, count in dropped.items():
            self.dropped[kind] += count

    def _make_room(self, connection: sqlite3.Connection) -> dict[str, int]:
        dropped: dict[str, int] = {}
        excess = _total(connection) - self._budget
        for kind in DROP_ORDER:
            if excess <= 0:
                break
            victims = _oldest(connection, kind, excess)
            connection.executemany("DELETE FROM outbox WHERE id = ?", [(row[0],) for row in victims])
            excess -= sum(row[1] for row in victims)
            dropped[kind] = len(victims)
        return dropped


def _total(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT COALESCE(SUM(size), 0) FROM outbox").fetchone()[0])


def _oldest(connection: sqlite3.Connection, kind: str, excess: int) -> Sequence[tuple[int, int]]:
    victims = []
    for row in connection.execute("SELECT id, size FROM outbox WHERE kind = ? ORDER BY id", (kind,)):
        victims.append((int(row[0]), int(row[1])))
        excess -= victims[-1][1]
        if excess <= 0:
            break
    return victims
