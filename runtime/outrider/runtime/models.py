"""The live table: which session serves each slot, swapped without dropping a request.

A swap takes effect for the next request. Requests in flight finish on the session they started on, which is closed
after its last one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from outrider.runtime.errors import NotFoundError

if TYPE_CHECKING:
    from outrider.runtime.bundle.manifest import Manifest
    from outrider.runtime.telemetry import Meter

log = logging.getLogger(__name__)

Array = NDArray[Any]


class Runnable(Protocol):
    """What the table needs of a session: `outrider.runtime.session.Session`, later a worker process."""

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""

    @property
    def takes_doubles(self) -> bool:
        """Whether a float32 input may be float64."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Named inputs to named outputs. Raises BadDataError or EngineFault."""

    def close(self) -> None:
        """Free the engine."""


class Live:
    """One session in a slot. `sha256` is its bundle, `meter` counts what it serves.

    `on_closed` runs after its last request, once it is retired.
    """

    def __init__(
        self,
        slot: str,
        sha256: str,
        session: Runnable,
        *,
        meter: Meter | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        self.slot = slot
        self.sha256 = sha256
        self.session = session
        self.meter = meter
        self._on_closed = on_closed
        self._users = 0
        self._retired = False

    @property
    def manifest(self) -> Manifest:
        """The manifest of the bundle that serves."""
        return self.session.manifest

    def enter(self) -> None:
        """One more request runs (the table's lock is held)."""
        self._users += 1

    def leave(self) -> bool:
        """One request less (lock held). True: nobody will use the session again, close it."""
        self._users -= 1
        return self._retired and self._users == 0

    def retire(self) -> bool:
        """No further requests (lock held). True: nobody uses the session, close it."""
        self._retired = True
        return self._users == 0

    def close(self) -> None:
        """Close the session and run `on_closed`; errors are logged, since nobody waits for the outcome."""
        for step in (self.session.close, self._on_closed):
            if step is None:
                continue
            try:
                step()
            except Exception:
                log.exception("closing the session of slot %s failed", self.slot)


class Models:
    """Slot -> Live. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._live: dict[str, Live] = {}
        self._lock = threading.Lock()

    def put(self, live: Live) -> None:
        """Serve `live` in its slot from the next request on, and retire what was there."""
        with self._lock:
            old = self._live.get(live.slot)
            self._live[live.slot] = live
            idle = old is not None and old.retire()
        if old is not None and idle:
            old.close()

    def remove(self, slot: str) -> None:
        """Serve nothing in this slot any more."""
        with self._lock:
            old = self._live.pop(slot, None)
            idle = old is not None and old.retire()
        if old is not None and idle:
            old.close()

    def close(self) -> None:
        """Retire every session."""
        for slot in self.slots():
            self.remove(slot)

    def slots(self) -> tuple[str, ...]:
        """The slots that serve, sorted."""
        with self._lock:
            return tuple(sorted(self._live))

    def sha256(self, slot: str) -> str | None:
        """The digest of the bundle that serves in a slot."""
        with self._lock:
            live = self._live.get(slot)
            return None if live is None else live.sha256

    @contextmanager
    def lease(self, slot: str) -> Iterator[Live]:
        """The live session of a slot, kept open while the lease is held. Raises NotFoundError."""
        with self._lock:
            live = self._live.get(slot)
            if live is None:
                known = ", ".join(sorted(self._live)) or "none yet"
                raise NotFoundError(f"no model serves in slot {slot!r}; slots that serve: {known}")
            live.enter()
        try:
            yield live
        finally:
            with self._lock:
                last = live.leave()
            if last:
                live.close()
