"""The manager: the one that reads what devices say, decides, and tells them what to run.

Threads: paho's network thread, `ingest` (broker → database), `blocks` (registry → broker), and `manager`, the tick,
which steps rollouts, publishes documents, and evaluates drift and triggers. The tick runs when something happened and
once in `tick_s`; whatever fails in it is logged and tried again at the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy import or_, update

from outrider.fleet import audit
from outrider.fleet.broker import Broker
from outrider.fleet.db import Database, DeviceRow
from outrider.fleet.manager.blocks import BlockServer
from outrider.fleet.manager.catalogue import Catalogue
from outrider.fleet.manager.deploy import Deployer
from outrider.fleet.manager.drift import DriftEvaluator
from outrider.fleet.manager.ingest import Ingest
from outrider.fleet.manager.link import Incoming, ManagerLink
from outrider.fleet.manager.publish import Publisher
from outrider.fleet.manager.retrain import step_triggers
from outrider.fleet.settings import FleetSettings
from outrider.runtime.errors import OutriderError
from outrider.runtime.messages import EPOCH_TOPIC
from outrider.runtime.trust import PrivateKey

log = logging.getLogger(__name__)

# A tick is not followed by another sooner than this, nor than it took itself, so that a flood of messages does not
# become a flood of ticks.
SHORTEST_TICK_S = 0.05
# How long devices have to come back after a broker that lost their connections; their own backoff ends at 120 s.
RETURN_S = 150.0
SNAPSHOT_S = 3.0


class Manager:
    """Runs from `start` to `stop`. `settings` are the fleet's; `broker` is one that `start_broker` gave."""

    def __init__(
        self,
        db: Database,
        broker: Broker,
        signer: PrivateKey,
        settings: FleetSettings,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._database = db
        self._broker = broker
        self._settings = settings
        self._now = now
        self._generation = broker.generation
        self._started_at = now()
        self._return_by: float | None = None
        self._connected_at = self._started_at
        self._lost_at = 0.0
        self._up = threading.Event()
        self._snapshot_until: float | None = None
        self._wake = threading.Event()
        self._changed = threading.Event()
        self._stopping = threading.Event()
        catalogue = Catalogue()
        self._link = ManagerLink(broker, on_message=self._receive, on_up=self._connected)
        self._blocks = BlockServer(db, settings.bundles_dir, self._link)
        self._ingest = Ingest(db, ack=self._link.ack, on_block=self._blocks.request, on_change=self.wake, now=now)
        # The key that devices pin names the fleet: a broker with another fleet's state is told apart.
        self._publisher = Publisher(self._link, signer.public.keyid.encode(), on_room=self._wake.set)
        self._deployer = Deployer(signer, settings, catalogue)
        self._drift = DriftEvaluator(db, settings, catalogue)
        self._thread = threading.Thread(target=self._run, name="manager", daemon=True)

    def start(self) -> None:
        """Start all threads. Returns at once, also while the broker is away."""
        with self._database.session() as session:
            audit.record(
                session,
                actor="fleet",
                action="manager.start",
                subject=self._broker.kind,
                detail={"broker": self._broker.kind, "isolates_devices": self._broker.isolates},
                now=self._now(),
            )
        self._expect_devices()
        self._ingest.start()
        self._blocks.start()
        self._link.start()
        self._thread.start()

    def stop(self) -> None:
        """End all threads and disconnect. May be called twice, and without `start`."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._blocks.stop()
        self._ingest.stop()
        self._link.stop()

    def wake(self) -> None:
        """Look at everything now, not at the next tick. From any thread."""
        self._changed.set()
        self._wake.set()

    # From paho's thread ---------------------------------------------------------------------------------------------

    def _receive(self, message: Incoming) -> None:
        if message.topic == EPOCH_TOPIC:
            self._publisher.epoch_seen(message.payload)
            self._link.ack(message)
        else:
            self._ingest.put(message)

    def _connected(self, resumed: bool) -> None:
        log.info("the manager is connected, its session %s", "was kept" if resumed else "is new")
        self._publisher.up()
        self._connected_at = self._now()
        self._snapshot_until = None if resumed else time.monotonic() + SNAPSHOT_S
        self._up.set()
        self.wake()

    # The tick -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        look_at = time.monotonic()
        while not self._stopping.is_set():
            self._wake.wait(max(0.0, look_at - time.monotonic()))
            self._wake.clear()
            began = time.monotonic()
            if self._changed.is_set() or began >= look_at:
                self._changed.clear()
                more = self._tick(self._watch_broker, self._step_rollouts, self._publish, self._step_drift, self._judge)
                look_at = time.monotonic() + (SHORTEST_TICK_S if more else self._settings.tick_s)
            else:  # the broker has taken what was published, and there may be more of it
                self._tick(self._publish)
            self._stopping.wait(max(SHORTEST_TICK_S, time.monotonic() - began))

    def _tick(self, *parts: Callable[[], bool]) -> bool:
        """One look. Each part stands alone: trouble in one does not keep the others from running."""
        more = False
        for part in parts:
            if self._stopping.is_set():
                return False
            name = part.__name__.strip("_").replace("_", " ")
            try:
                more = part() or more
            except OutriderError as e:
                log.error("could not %s, it is tried again: %s", name, e)
            except Exception:
                log.exception("could not %s, it is tried again", name)
        return more

    def _watch_broker(self) -> bool:
        if self._up.is_set():
            self._up.clear()
            self._publisher.forget_recent()
            if self._broker.generation != self._generation:
                self._generation = self._broker.generation
                self._audit_loss("restarted")
        if self._publisher.lost_state():
            self._publisher.forget()
            self._audit_loss("state missing")
        if self._snapshot_until is not None and time.monotonic() > self._snapshot_until and self._ingest.idle:
            self._snapshot_until = None
            self._link.end_snapshot()
        if self._return_by is not None and time.monotonic() > self._return_by:
            self._return_by = None
            self._end_absent()
        return False

    def _audit_loss(self, what: str) -> None:
        self._expect_devices()
        with self._database.session() as session:
            audit.record(
                session,
                actor="fleet",
                action="broker.lost",
                subject=self._broker.kind,
                detail={"what": what},
                now=self._now(),
            )

    def _expect_devices(self) -> None:
        """The broker has lost its connections, and wills with them: devices that do not come back are offline.

        One that is back already was heard of after we connected, since all that devices say comes over that.
        """
        self._lost_at = self._connected_at
        self._return_by = time.monotonic() + RETURN_S

    def _end_absent(self) -> None:
        silent = or_(DeviceRow.last_seen.is_(None), DeviceRow.last_seen < self._lost_at)
        with self._database.session() as session:
            session.execute(update(DeviceRow).where(DeviceRow.online, silent).values(online=False))

    def _step_rollouts(self) -> bool:
        since = self._ingest.online_since
        with self._database.session() as session:
            return self._deployer.step(
                session, online_since=lambda device: since.get(device, self._started_at), now=self._now()
            )

    def _publish(self) -> bool:
        with self._database.read() as session:
            return self._publisher.step(session)

    def _step_drift(self) -> bool:
        return self._drift.step(now=self._now())

    def _judge(self) -> bool:
        with self._database.session() as session:
            return step_triggers(session, now=self._now())
