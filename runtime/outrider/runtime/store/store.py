"""What a device keeps on disk: slots, journal, outbox, and the desired document that it accepted last."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from pathlib import Path

import msgspec

from outrider.runtime.durable import Checkpoint, make_folder, no_checkpoint, storage_errors
from outrider.runtime.errors import ConflictError, StorageError
from outrider.runtime.messages import Desired, Disk, Event, encode
from outrider.runtime.store.database import Database
from outrider.runtime.store.outbox import BUDGET_BYTES, Outbox
from outrider.runtime.store.slots import Slots
from outrider.runtime.updater import Deployment

JOURNAL_ROWS = 1000
"""How many past transitions are kept for diagnosis."""


class Store:
    """One device's state folder, locked against a second process.

    `checkpoint(name)` is called at every named point of a durable act; tests end the process there.
    Raises ConflictError where another process holds the folder, StorageError where it cannot be used.
    """

    def __init__(
        self, folder: Path | str, *, outbox_bytes: int = BUDGET_BYTES, checkpoint: Checkpoint = no_checkpoint
    ) -> None:
        self.folder = Path(folder)
        self.checkpoint = checkpoint
        with storage_errors(f"use {self.folder}"):
            make_folder(self.folder)
            self._lock = self._acquire()
        try:
            self.slots = Slots(self.folder, checkpoint)
            self._database = Database(self.folder / "device.db")
        except BaseException:
            os.close(self._lock)
            raise
        self.outbox = Outbox(self._database, outbox_bytes)
        self._seq = 0
        self._seq_lock = threading.Lock()

    def next_seq(self) -> int:
        """The next message number of this process, from 1 (with the process's `boot_id` it is unique)."""
        with self._seq_lock:
            self._seq += 1
            return self._seq

    # Desired state ---------------------------------------------------------------------------------------

    def accept(self, desired: Desired) -> None:
        """Keep a checked desired document, its revision and the highest rollback floor, in one transaction."""
        floor = max(desired.rollback_floor, self.rollback_floor())

        def change(connection: sqlite3.Connection) -> None:
            _set(connection, "desired", encode(desired))
            _set(connection, "revision", desired.rev)
            _set(connection, "rollback_floor", floor)

        self._database.write(change)

    def desired(self) -> Desired | None:
        """The desired document accepted last, or None."""
        data = self._get("desired")
        return None if data is None else msgspec.json.decode(data, type=Desired)

    def revision(self) -> int:
        """The last revision accepted and journalled, 0 before the first. It never falls."""
        return self._number("revision")

    def rollback_floor(self) -> int:
        """The lowest release number that may be installed. It never falls."""
        return self._number("rollback_floor")

    # Starts ----------------------------------------------------------------------------------------------

    def begin_boot(self) -> bool:
        """Count a start; whether the one before ended by `end_boot` (or there was none before)."""

        def change(connection: sqlite3.Connection) -> bool:
            boots = _number(connection, "boots")
            clean = boots == 0 or _number(connection, "clean") == 1
            _set(connection, "boots", boots + 1)
            _set(connection, "clean", 0)
            return clean

        return self._database.write(change)

    def end_boot(self) -> None:
        """Note that this process ended in an orderly way."""
        self._database.write(lambda connection: _set(connection, "clean", 1))

    def boots(self) -> int:
        """How often the daemon was started on this folder."""
        return self._number("boots")

    # Journal ---------------------------------------------------------------------------------------------

    def deployment(self, slot: str) -> Deployment | None:
        """The update of a slot as it was journalled last, or None."""
        row = self._database.read(
            lambda connection: connection.execute("SELECT record FROM deployments WHERE slot = ?", (slot,)).fetchone()
        )
        return None if row is None else msgspec.msgpack.decode(row[0], type=Deployment)

    def deployments(self) -> dict[str, Deployment]:
        """All slots' updates."""
        rows = self._database.read(
            lambda connection: connection.execute("SELECT slot, record FROM deployments ORDER BY slot").fetchall()
        )
        return {slot: msgspec.msgpack.decode(record, type=Deployment) for slot, record in rows}

    def journal(self, deployment: Deployment, event: Event | None) -> None:
        """Write an update's new state and, in the same transaction, the message that tells the fleet."""
        record = msgspec.msgpack.encode(deployment)
        payload = None if event is None else encode(event)

        def change(connection: sqlite3.Connection) -> dict[str, int]:
            connection.execute("INSERT OR REPLACE INTO deployments VALUES (?, ?)", (deployment.slot, record))
            if payload is None:
                return {}
            connection.execute(
                "INSERT INTO journal (at, slot, event) VALUES (?, ?, ?)", (time.time(), deployment.slot, payload)
            )
            connection.execute("DELETE FROM journal WHERE id <= (SELECT MAX(id) FROM journal) - ?", (JOURNAL_ROWS,))
            return self.outbox.insert(connection, "evt", payload)

        self.checkpoint(f"journal.{deployment.state}.begin")
        dropped = self._database.write(change)
        self.checkpoint(f"journal.{deployment.state}.done")
        self.outbox.count_dropped(dropped)
        if event is not None:
            self.outbox.notify()

    def history(self, limit: int = 100) -> list[Event]:
        """The last transitions, newest first."""
        rows = self._database.read(
            lambda connection: connection.execute(
                "SELECT event FROM journal ORDER BY id DESC LIMIT ?", (limit,)
            ).fetchall()
        )
        return [msgspec.json.decode(row[0], type=Event) for row in rows]

    # Disk ------------------------------------------------------------------------------------------------

    def disk(self) -> Disk:
        """Size and free bytes of the file system that holds the slots."""
        with storage_errors("measure the disk"):
            found = os.statvfs(self.folder)
        return Disk(total=found.f_blocks * found.f_frsize, free=found.f_bavail * found.f_frsize)

    def collect_garbage(self) -> None:
        """Remove what no slot and no update in flight needs, and hold the journal's reserve back again."""
        keep: set[str] = set()
        for deployment in self.deployments().values():
            if not deployment.settled:
                keep.add(deployment.wanted.bundle)
                keep.update(() if deployment.fallback is None else (deployment.fallback,))
        desired = self.desired()
        if desired is not None:
            keep.update(
                one.bundle
                for slot, one in desired.slots.items()
                if (found := self.deployment(slot)) is None or found.rev < desired.rev
            )
        self.slots.collect(keep)
        self._database.restore_ballast()

    def close(self) -> None:
        """Close the database and release the folder."""
        self._database.close()
        os.close(self._lock)

    def _acquire(self) -> int:
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            os.close(handle)
            raise ConflictError(f"{self.folder} is in use by another process", hint="stop the other outriderd") from e
        return handle

    def _get(self, key: str) -> bytes | None:
        row = self._database.read(
            lambda connection: connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        )
        if row is None:
            return None
        if not isinstance(row[0], bytes):
            raise StorageError(f"the journal holds no bytes for {key}")
        return row[0]

    def _number(self, key: str) -> int:
        return self._database.read(lambda connection: _number(connection, key))


def _number(connection: sqlite3.Connection, key: str) -> int:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return 0 if row is None else int(row[0])


def _set(connection: sqlite3.Connection, key: str, value: bytes | int) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
