"""Drives one slot's update: journals each step of `updater`, carries out its action, feeds the result back.

One thread a slot. An action that takes long (fetch, probe) ends early when a newer offer, failed health, the state's
deadline or `stop` is waiting for it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque

from msgspec import UNSET

from outrider.runtime import updater
from outrider.runtime.errors import StorageError
from outrider.runtime.installation import Device, Installation, Setback, Tried
from outrider.runtime.messages import BundleRef, Desired, Event, SlotReport
from outrider.runtime.updater import Action, Deployment

log = logging.getLogger(__name__)

_TROUBLE_S = 5.0
"""How long to wait when the journal itself cannot be written."""


class SlotWorker:
    """One slot. Call `resume` once, then `start`; the other methods are for any thread."""

    def __init__(self, slot: str, device: Device) -> None:
        self.slot = slot
        self._device = device
        self._store = device.store
        self._installation = Installation(slot, device, self._interrupted)
        self._deployment = device.store.deployment(slot)
        self._pending: Action | None = None
        self._garbage = False
        self._events: deque[updater.Event] = deque()
        self._desired: Desired | None = None  # not taken up yet
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def resume(self, *, clean: bool) -> None:
        """After a start: finish or take back what was being activated, and serve what is current.

        `clean`: the process before had ended in an orderly way.
        """
        self._store.checkpoint("resume.begin")
        active = self._store.slots.current(self.slot)
        event = updater.Resumed(active=active, clean=clean, now=time.monotonic(), wall=time.time())
        settled_first = False
        try:
            self._apply(event)
            while self._pending in ("activate", "restore"):
                settled_first = True
                self._carry_out(self._pending)
            if not settled_first:
                self._serve_current()
        except StorageError as e:
            log.error("slot %s serves what it has; its journal cannot be written: %s", self.slot, e)
            self._events.append(event)
            self._installation.load(self._store.slots.current(self.slot))
        self._store.checkpoint("resume.done")

    def start(self) -> None:
        """Begin to work."""
        self._thread = threading.Thread(target=self._run, name=f"slot-{self.slot}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End soon. What was under way is taken up by the next process's `resume`."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()

    def join(self) -> None:
        """Wait for the end after `stop`."""
        if self._thread is not None:
            self._thread.join()

    def desire(self, desired: Desired) -> None:
        """There is a newer desired document, which the store has accepted."""
        with self._wake:
            self._desired = desired
            self._wake.notify_all()

    def health_failed(self, bundle: str | None, reason: str, detail: str) -> None:
        """The active bundle does not serve as it should."""
        self._post(updater.HealthFailed(bundle=bundle, reason=reason, detail=detail, now=time.monotonic()))

    def nudge(self) -> None:
        """Fetch now, where a fetch waits to be tried again."""
        deployment = self._deployment
        if deployment is not None and deployment.state == "FETCHING" and deployment.until is not None:
            self._post(updater.Tick(now=deployment.until, wall=time.time()))

    def report(self) -> SlotReport:
        """What the slot holds and how far its update is."""
        slots, deployment = self._store.slots, self._deployment
        active, staging = slots.current(self.slot), None
        if deployment is not None and not deployment.settled and deployment.wanted.bundle != active:
            wanted = deployment.wanted
            staging = BundleRef(sha256=wanted.bundle, name=wanted.name, version=wanted.version)
        return SlotReport(
            active=slots.ref(active),
            previous=slots.ref(slots.previous(self.slot)),
            staging=staging,
            state=None if deployment is None else deployment.state,
            job=None if deployment is None else deployment.job,
            attempt=None if deployment is None else deployment.attempt,
        )

    # The thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except StorageError as e:
                log.error("slot %s waits for its disk: %s", self.slot, e)
                self._sleep(time.monotonic() + _TROUBLE_S, until_event=False)
            except Exception:
                log.exception("slot %s met a fault, it goes on", self.slot)
                self._sleep(time.monotonic() + _TROUBLE_S, until_event=False)

    def _turn(self) -> None:
        """One thing: an event, a newer document, a deadline, the action that is due, garbage, or a wait."""
        due = None if self._deployment is None else updater.wake_at(self._deployment)
        if self._events:
            self._apply(self._events[0])
            self._events.popleft()
        elif self._can_take_up():
            self._take_up()
        elif due is not None and time.monotonic() >= due:
            self._apply(updater.Tick(now=time.monotonic(), wall=time.time()))
        elif self._pending is not None:
            self._carry_out(self._pending)
        elif self._garbage:
            self._garbage = False
            self._installation.collect()
        else:
            self._sleep(due, until_event=True)

    def _apply(self, event: updater.Event) -> None:
        """One step: journal the new record, with the message to the fleet where the state changed."""
        old = self._deployment
        new, actions = updater.step(old, event)
        if new is not None and new != old:
            moved = old is None or (old.key, old.state) != (new.key, new.state)
            self._store.journal(new, self._message(old, new) if moved else None)
            self._deployment = new
            if moved:
                said = f" ({new.reason}: {new.detail})" if new.reason else ""
                log.info("slot %s: %s %s is %s%s", self.slot, new.wanted.name, new.wanted.version, new.state, said)
                self._device.on_change()
        self._garbage = self._garbage or "collect" in actions
        self._pending = next((action for action in actions if action != "collect"), None)

    def _carry_out(self, action: Action) -> None:
        """Do what the record asks for and feed back how it went; an action that was interrupted stays due."""
        deployment = self._deployment
        assert deployment is not None
        outcome = self._installation.carry_out(action, deployment)
        now = time.monotonic()
        if isinstance(outcome, Setback):
            self._apply(
                updater.Failed(
                    key=deployment.key,
                    action=action,
                    reason=outcome.reason,
                    detail=outcome.detail,
                    retry=outcome.retry,
                    now=now,
                    trials=outcome.trials,
                )
            )
        elif outcome:
            trials = outcome.trials if isinstance(outcome, Tried) else ()
            self._apply(updater.Succeeded(key=deployment.key, action=action, now=now, wall=time.time(), trials=trials))

    def _can_take_up(self) -> bool:
        return self._desired is not None and (self._deployment is None or self._deployment.undo is None)

    def _take_up(self) -> None:
        """Offer what the newest document wants; it stays until the record has its revision."""
        desired = self._desired
        assert desired is not None
        wanted = desired.slots.get(self.slot)
        if wanted is None:
            self._apply(updater.Withdrawn(rev=desired.rev))
        else:
            self._apply(
                updater.Offered(
                    slot=self.slot,
                    rev=desired.rev,
                    job=desired.job,
                    attempt=desired.attempt,
                    wanted=wanted,
                    issued=desired.issued,
                    not_after=desired.not_after,
                    active=self._store.slots.current(self.slot),
                    previous=self._store.slots.previous(self.slot),
                    jitter=random.random(),  # noqa: S311  # spreads devices in time, guards nothing
                    now=time.monotonic(),
                )
            )
        with self._wake:
            taken = self._deployment is None or self._deployment.rev >= desired.rev
            if taken and self._desired is desired:
                self._desired = None

    def _serve_current(self) -> None:
        """Load what the slot is linked to; what does not load gives way to the bundle before it."""
        slots = self._store.slots
        current, previous = slots.current(self.slot), slots.previous(self.slot)
        if current is None and previous is None:
            return
        trouble = "it is gone from the disk" if current is None else self._installation.load(current)
        if trouble is None:
            return
        log.critical("slot %s cannot serve its active bundle: %s", self.slot, trouble)
        self._apply(updater.HealthFailed(bundle=current, reason="load", detail=trouble, now=time.monotonic()))
        if self._pending == "restore":
            self._carry_out("restore")
        elif previous is not None and previous != current and self._installation.load(previous) is None:
            slots.restore(self.slot, previous)

    def _message(self, old: Deployment | None, new: Deployment) -> Event:
        probed = bool(new.trials) and old is not None and old.key == new.key and not old.trials
        return Event(
            v=1,
            boot_id=self._device.boot_id,
            seq=self._store.next_seq(),
            at=time.time(),
            slot=self.slot,
            job=new.job,
            attempt=new.attempt,
            from_state=old.state if old is not None and old.key == new.key else None,
            to_state=new.state,
            bundle=new.wanted.bundle,
            reason=new.reason,
            detail=new.detail,
            trials=new.trials if probed else UNSET,
        )

    def _interrupted(self) -> bool:
        deployment = self._deployment
        late = deployment is not None and time.monotonic() >= deployment.deadline
        return self._stopping or late or bool(self._events) or self._desired is not None

    def _post(self, event: updater.Event) -> None:
        with self._wake:
            self._events.append(event)
            self._wake.notify_all()

    def _sleep(self, until: float | None, *, until_event: bool) -> None:
        """Wait for `until` (monotonic; None: for ever), `stop`, or, with `until_event`, something to do."""
        with self._wake:
            while not self._stopping:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return
                if until_event and (self._events or self._can_take_up()):
                    return
                self._wake.wait(left)
