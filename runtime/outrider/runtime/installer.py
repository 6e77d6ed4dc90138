"""Installs what the fleet wants: takes signed desired documents, and sees each slot's update through.

`offer` decides (see `offer`), keeps the document on disk and returns; each slot's `SlotWorker` does the rest. After
any crash `resume` goes on from the journal.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from outrider.runtime.errors import StorageError
from outrider.runtime.fetch import Source
from outrider.runtime.installation import Device
from outrider.runtime.messages import Address, Desired, Disk, SlotReport
from outrider.runtime.offer import Refused, examine
from outrider.runtime.prober import Prober, probe
from outrider.runtime.slot_worker import SlotWorker
from outrider.runtime.store import Store
from outrider.runtime.target import Target
from outrider.runtime.trust import TrustStore

log = logging.getLogger(__name__)


class InstallerReport(msgspec.Struct, frozen=True, kw_only=True):
    """The installer's part of `messages.Reported`."""

    revision: int
    slots: dict[str, SlotReport]
    disk: Disk


def _nothing() -> None:
    """Nobody wants to know."""


class Installer:
    """Keeps the slots of one device as its fleet wants them.

    - `sources`: tried in this order for a bundle's bytes.
    - `boot_id`: of this process; it goes into every event.
    - `host`: the target of this machine, for admission.
    - `on_active(slot, bundle)`: serve this bundle in the slot from now on; None: serve nothing. It raises where the
      bundle cannot be served. Called on the slot's thread, and within `resume` for all that is current.
    - `on_change()`: the reported state has changed, and events may wait in the outbox. From any thread; be quick.
    - `prober`: how a bundle is tried out before it serves; by default in a child process.

    Call `resume` once before anything else, `stop` at the end.
    """

    def __init__(
        self,
        store: Store,
        *,
        sources: Sequence[Source],
        trust: TrustStore,
        address: Address,
        boot_id: str,
        host: Target,
        on_active: Callable[[str, Path | None], None],
        on_change: Callable[[], None] = _nothing,
        prober: Prober = probe,
    ) -> None:
        self._store = store
        self._address = address
        self._device = Device(
            store=store,
            sources=tuple(sources),
            trust=trust,
            boot_id=boot_id,
            host=host,
            prober=prober,
            on_active=on_active,
            on_change=on_change,
        )
        self._workers: dict[str, SlotWorker] = {}
        self._lock = threading.RLock()
        self._refused: dict[str, int] = {}
        self._last_refused: bytes | None = None

    @property
    def refused(self) -> Mapping[str, int]:
        """How many desired documents were refused since the start, by `offer.Refused.code`."""
        return dict(self._refused)

    def resume(self) -> None:
        """Serve what is on disk, and go on with every update from where the last process left it."""
        try:
            clean = self._store.begin_boot()
        except StorageError as e:  # a full disk must not keep the device from serving
            log.error("this start could not be counted: %s", e)
            clean = True
        desired = self._store.desired()
        known = {*self._store.slots.names(), *self._store.deployments(), *(desired.slots if desired else ())}
        with self._lock:
            for slot in sorted(known):
                self._add(slot, desired, clean=clean)

    def offer(self, envelope: bytes) -> None:
        """Take up a desired document: once this returns it is on disk and will be worked on.

        A document that must not count changes nothing, is counted in `refused` and logged once. Raises UnsignedError,
        UnknownKeyError, BadSignatureError, TrustError (another device's, or expired), StaleRevisionError,
        BadMessageError; StorageError where the disk fails (offer it again later).
        """
        with self._lock:
            applied = self._store.desired()
            found = examine(
                envelope, trust=self._device.trust, address=self._address, applied=applied, wall=time.time()
            )
            if isinstance(found, Refused):
                self._refuse(envelope, found)
                raise found.error
            if found == applied:
                return
            self._store.checkpoint("offer.begin")
            self._store.accept(found)
            self._store.checkpoint("offer.done")
            log.info("revision %d was accepted: job %s, attempt %d", found.rev, found.job, found.attempt)
            for slot in found.slots:
                if slot not in self._workers:
                    self._add(slot, None, clean=True)
            for worker in self._workers.values():
                worker.desire(found)
        self._device.on_change()

    def stop(self) -> None:
        """End the workers in an orderly way; updates go on after the next start."""
        with self._lock:
            workers = list(self._workers.values())
            for worker in workers:
                worker.stop()
        for worker in workers:
            worker.join()
        self._store.end_boot()

    def report(self) -> InstallerReport:
        """The applied revision, what each slot holds, and the disk. Raises StorageError."""
        with self._lock:
            workers = dict(self._workers)
        return InstallerReport(
            revision=self._store.revision(),
            slots={slot: worker.report() for slot, worker in workers.items()},
            disk=self._store.disk(),
        )

    def active_bundle(self, slot: str) -> Path | None:
        """The bundle that the slot runs, or None where it is empty."""
        sha256 = self._store.slots.current(slot)
        return None if sha256 is None else self._store.slots.bundle_path(sha256)

    def health_failed(self, slot: str, reason: str, detail: str = "", *, bundle: str | None = None) -> None:
        """The slot's bundle does not serve as it should: it is rolled back, where there is an earlier one or it soaks.

        `reason` is machine-readable. `bundle` is the SHA-256 of the one that failed; None: whichever is active.
        """
        with self._lock:
            worker = self._workers.get(slot)
        if worker is not None:
            worker.health_failed(bundle, reason, detail)

    def nudge(self) -> None:
        """A source may be reachable again: fetch now what waits for another try."""
        with self._lock:
            workers = list(self._workers.values())
        for worker in workers:
            worker.nudge()

    def _add(self, slot: str, desired: Desired | None, *, clean: bool) -> None:
        worker = SlotWorker(slot, self._device)
        self._workers[slot] = worker
        worker.resume(clean=clean)
        if desired is not None:
            worker.desire(desired)
        worker.start()

    def _refuse(self, envelope: bytes, refused: Refused) -> None:
        """Count it; say so once, for a retained document comes again at every connection."""
        self._refused[refused.code] = self._refused.get(refused.code, 0) + 1
        if envelope != self._last_refused:
            self._last_refused = bytes(envelope)
            log.warning("a desired document was refused (%s): %s", refused.code, refused.error)
