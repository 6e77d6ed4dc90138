"""The update of one slot as a pure state machine: a record and an event in, a record and actions out.

```
OFFERED → ADMITTED → FETCHING → VERIFIED → STAGED → PROBING → ARMED → SOAKING → COMMITTED
   admit    reserve     fetch     stage    inspect   probe     swap   activate │ ROLLED_BACK
                                                                               │ REJECTED | FAILED | SUPERSEDED
```
Below each state stands the action that it asks for; the action's success leads to the next state. Rules:

1. An offer is known by its key (job, attempt, bundle). The same key again changes nothing but the revision.
   A revision below the record's is ignored.
2. A bundle that is active already is COMMITTED at once; one that soaks for another offer soaks again for this one.
3. A newer offer ends the update in flight as SUPERSEDED; what it wants begins with the next `Offered`. While
   SOAKING the bundle that was active before is restored first, unless there was none or the newer offer wants
   the same bundle: a slot is never emptied for an offer, and nothing falls back to an unconfirmed bundle where
   there is a confirmed one.
4. A result counts only if it is of the action that the record asks for: duplicates and late ones are ignored.
5. Every state has a deadline (`Tick`); past it the update is FAILED, or rolled back while SOAKING. Where a swap
   may have been made and not yet journalled, the earlier bundle is restored first.
6. What cannot be reached is tried again with backoff until FETCHING's deadline. A full disk is REJECTED.
   A wrong digest is FAILED. What the device declines (admission, inspection, probe) is REJECTED.
7. Nothing is swapped before `activate.after` plus a random part of `jitter_s`, nor after the document expired.
8. Taking a bundle back is journalled as `undo` before it is done, so that a restart completes it.
9. While SOAKING, failed health rolls back. A COMMITTED bundle that fails is rolled back if there is a fallback.
10. After a restart each state's action is asked for again; all actions may be repeated. A restart that nobody
    ordered while SOAKING (or ARMED and swapped already) is an unconfirmed boot: the second one rolls back.
    The third such restart while PROBING rejects the bundle, for a probe may take the machine down.

Times: `now` is this process's monotonic clock and `wall` the time of day, both in seconds. Only rule 7 reads the
time of day, and `activate.after` delays by no more than the document asked for when it was issued, so that a clock
that is wrong by years delays no update for years.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
from msgspec.structs import replace

from outrider.runtime.messages import TERMINAL_STATES, ArtifactTrial, SlotDesired, State

Action = Literal["admit", "reserve", "fetch", "stage", "inspect", "probe", "swap", "activate", "restore", "collect"]
Outcome = Literal["ROLLED_BACK", "REJECTED", "FAILED", "SUPERSEDED"]

UNCONFIRMED_BOOTS = 2
PROBE_BOOTS = 3

# Deadlines by state, seconds. FETCHING adds the size at the slowest rate that is still worth waiting for,
# ARMED its delay, SOAKING the soak.
DEADLINE_S: dict[State, float] = {
    "OFFERED": 120.0,
    "ADMITTED": 120.0,
    "FETCHING": 86_400.0,
    "VERIFIED": 600.0,
    "STAGED": 600.0,
    "PROBING": 300.0,
    "ARMED": 600.0,
    "SOAKING": 120.0,
}
SLOWEST_BYTES_PER_S = 4096.0
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 300.0
RESTORE_AGAIN_S = 10.0

# What each state asks for, and the state that its success leads to.
_WORK: dict[State, tuple[Action, State]] = {
    "OFFERED": ("admit", "ADMITTED"),
    "ADMITTED": ("reserve", "FETCHING"),
    "FETCHING": ("fetch", "VERIFIED"),
    "VERIFIED": ("stage", "STAGED"),
    "STAGED": ("inspect", "PROBING"),
    "PROBING": ("probe", "ARMED"),
    "ARMED": ("swap", "SOAKING"),
}
_DECLINING: frozenset[Action] = frozenset({"admit", "reserve", "inspect", "probe"})
_COLLECTING: frozenset[State] = frozenset({"COMMITTED", "ROLLED_BACK", "REJECTED"})


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of records and events."""


class Key(_Record, frozen=True, kw_only=True):
    """What makes an offer the same offer."""

    job: str
    attempt: int
    bundle: str


class Undo(_Record, frozen=True, kw_only=True):
    """A decision to take the bundle back, and what the update ends as once that is done."""

    outcome: Outcome
    reason: str
    detail: str = ""


class Deployment(_Record, frozen=True, kw_only=True):
    """The update of one slot. `deadline` and `until` are monotonic times of this process, set anew on a restart.

    `until` is when to act next: fetch again (FETCHING), swap (ARMED), commit (SOAKING), restore again (`undo`);
    None while an action runs. `fallback` is the bundle that was active before, or None for a first one.
    `boots` counts restarts in this state that nobody ordered, `tries` the fetches that reached nobody. `trials` is what
    the probe found of each artifact of a bundle that has several.
    """

    slot: str
    rev: int
    job: str
    attempt: int
    wanted: SlotDesired
    issued: float
    not_after: float
    state: State
    reason: str = ""
    detail: str = ""
    deadline: float = math.inf
    until: float | None = None
    jitter: float = 0.0
    boots: int = 0
    tries: int = 0
    fallback: str | None = None
    undo: Undo | None = None
    trials: tuple[ArtifactTrial, ...] = ()

    @property
    def key(self) -> Key:
        """What makes this the same offer."""
        return Key(job=self.job, attempt=self.attempt, bundle=self.wanted.bundle)

    @property
    def settled(self) -> bool:
        """Whether the update is over and nothing is left to take back."""
        return self.state in TERMINAL_STATES and self.undo is None


class Offered(_Record, frozen=True, kw_only=True):
    """The desired document wants this of the slot. `active` and `previous` are what is linked now.

    `jitter` is a random number in [0, 1).
    """

    slot: str
    rev: int
    job: str
    attempt: int
    wanted: SlotDesired
    issued: float
    not_after: float
    active: str | None
    previous: str | None
    jitter: float
    now: float


class Withdrawn(_Record, frozen=True, kw_only=True):
    """A newer desired document no longer names the slot: what is not active yet will not be."""

    rev: int


class Succeeded(_Record, frozen=True, kw_only=True):
    """An action was carried out for the update with this key. `trials`: what a probe found."""

    key: Key
    action: Action
    now: float
    wall: float
    trials: tuple[ArtifactTrial, ...] = ()


class Failed(_Record, frozen=True, kw_only=True):
    """An action failed. `reason` is machine-readable; `retry`: it may work later. `trials`: see `Succeeded`."""

    key: Key
    action: Action
    reason: str
    detail: str
    retry: bool
    now: float
    trials: tuple[ArtifactTrial, ...] = ()


class HealthFailed(_Record, frozen=True, kw_only=True):
    """The active bundle does not serve as it should. `bundle` None: whichever is active."""

    bundle: str | None
    reason: str
    detail: str
    now: float


class Tick(_Record, frozen=True, kw_only=True):
    """Time passed."""

    now: float
    wall: float


class Resumed(_Record, frozen=True, kw_only=True):
    """The process started. `clean`: the one before had ended in an orderly way. `active`: what is linked now."""

    active: str | None
    clean: bool
    now: float
    wall: float


Event = Offered | Withdrawn | Succeeded | Failed | HealthFailed | Tick | Resumed


def step(deployment: Deployment | None, event: Event) -> tuple[Deployment | None, tuple[Action, ...]]:
    """One step. The caller journals the record (and reports a change of state) before it carries out the actions.

    The actions are all that the record asks for now: they take the place of those of the step before, except
    `collect`, which waits until there is nothing better to do.
    """
    new = _moved(deployment, event)
    if new is None:
        return None, ()
    if new.settled and new.state in _COLLECTING and (isinstance(event, Resumed) or new != deployment):
        return new, ("collect",)
    action = next_action(new)
    return new, () if action is None else (action,)


def next_action(deployment: Deployment) -> Action | None:
    """What the record asks for, or None while it waits or where it is settled."""
    if deployment.until is not None:
        return None
    if deployment.undo is not None:
        return "restore"
    if deployment.state == "SOAKING":
        return "activate"
    return _WORK[deployment.state][0] if deployment.state in _WORK else None


def wake_at(deployment: Deployment) -> float | None:
    """When the record next wants a `Tick` (monotonic), or None for never."""
    if deployment.undo is not None:
        return deployment.until
    if deployment.settled:
        return None
    return deployment.deadline if deployment.until is None else min(deployment.until, deployment.deadline)


def _moved(old: Deployment | None, event: Event) -> Deployment | None:
    if isinstance(event, Offered):
        return _offered(old, event)
    if old is None:
        return None
    if isinstance(event, Withdrawn):
        return _withdrawn(old, event)
    if isinstance(event, Succeeded):
        return _succeeded(old, event)
    if isinstance(event, Failed):
        return _failed(old, event)
    if isinstance(event, HealthFailed):
        return _health_failed(old, event)
    if isinstance(event, Tick):
        return _ticked(old, event)
    return _resumed(old, event)


def _offered(old: Deployment | None, event: Offered) -> Deployment:
    key = Key(job=event.job, attempt=event.attempt, bundle=event.wanted.bundle)
    if old is not None:
        if event.rev < old.rev or (event.rev == old.rev and key != old.key):
            return old
        if key == old.key:
            return replace(old, rev=event.rev, issued=event.issued, not_after=event.not_after)
        if not old.settled:
            return _superseded(old, event)
    fresh = Deployment(
        slot=event.slot,
        rev=event.rev,
        job=event.job,
        attempt=event.attempt,
        wanted=event.wanted,
        issued=event.issued,
        not_after=event.not_after,
        state="OFFERED",
        deadline=event.now + DEADLINE_S["OFFERED"],
        jitter=event.jitter,
        fallback=event.active,
    )
    if old is not None and old.state == "SUPERSEDED" and old.wanted.bundle == event.active:  # active, unconfirmed
        if event.active == key.bundle:
            soaking = _enter(replace(fresh, fallback=old.fallback), "SOAKING", event.now, event.issued)
            return replace(soaking, reason="already-active", detail="the bundle was active, and soaks again")
        return replace(fresh, fallback=old.fallback or event.active)
    if event.active == key.bundle:
        already = replace(fresh, fallback=event.previous)
        return _finish(already, "COMMITTED", "already-active", "the bundle was active already")
    return fresh


def _withdrawn(old: Deployment, event: Withdrawn) -> Deployment:
    if event.rev <= old.rev:
        return old
    kept = replace(old, rev=event.rev)
    before_swap = old.state in _WORK and old.undo is None and not _perhaps_active(old)
    return _finish(kept, "SUPERSEDED", "withdrawn", f"revision {event.rev}") if before_swap else kept


def _superseded(old: Deployment, event: Offered) -> Deployment:
    detail = f"revision {event.rev}"
    if old.undo is not None:
        return old
    if not _perhaps_active(old) or old.fallback is None or event.wanted.bundle == old.wanted.bundle:
        return _finish(old, "SUPERSEDED", "newer", detail)
    return _take_back(old, Undo(outcome="SUPERSEDED", reason="newer", detail=detail))


def _succeeded(old: Deployment, event: Succeeded) -> Deployment:
    if event.key != old.key or event.action != next_action(old):
        return old
    if old.undo is not None:
        return _finish(replace(old, undo=None), old.undo.outcome, old.undo.reason, old.undo.detail)
    if old.state == "SOAKING":
        return replace(old, until=event.now + old.wanted.health.soak_s)
    return _with_trials(_enter(old, _WORK[old.state][1], event.now, event.wall), event)


def _failed(old: Deployment, event: Failed) -> Deployment:
    if event.key != old.key or event.action != next_action(old):
        return old
    if old.undo is not None:
        return replace(old, until=event.now + RESTORE_AGAIN_S)
    if event.action == "fetch" and event.retry:
        wait = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(old.tries, 16))
        return replace(old, tries=old.tries + 1, until=event.now + wait)
    if event.action == "activate":
        return _take_back(old, Undo(outcome="ROLLED_BACK", reason=event.reason, detail=event.detail))
    outcome: Outcome = "REJECTED" if event.action in _DECLINING or event.reason == "disk" else "FAILED"
    if event.action == "swap":  # the link may have been changed or not
        return _take_back(old, Undo(outcome=outcome, reason=event.reason, detail=event.detail))
    return _finish(_with_trials(old, event), outcome, event.reason, event.detail)


def _with_trials(deployment: Deployment, event: Succeeded | Failed) -> Deployment:
    """The record with what a probe found."""
    return replace(deployment, trials=event.trials) if event.action == "probe" else deployment


def _health_failed(old: Deployment, event: HealthFailed) -> Deployment:
    if old.undo is not None or event.bundle not in (None, old.wanted.bundle):
        return old
    fallback = old.fallback not in (None, old.wanted.bundle)
    if old.state == "SOAKING" or (old.state == "COMMITTED" and fallback):
        return _take_back(old, Undo(outcome="ROLLED_BACK", reason=event.reason, detail=event.detail))
    return old


def _ticked(old: Deployment, event: Tick) -> Deployment:
    due = old.until is not None and event.now >= old.until
    if old.undo is not None:
        return replace(old, until=None) if due else old
    if old.settled:
        return old
    if old.state == "SOAKING" and due:
        return _finish(old, "COMMITTED", "", "")
    if event.now >= old.deadline:
        detail = f"{old.state} took longer than it may"
        if old.state == "SOAKING":
            return _take_back(old, Undo(outcome="ROLLED_BACK", reason="deadline", detail=detail))
        if _perhaps_active(old):
            return _take_back(old, Undo(outcome="FAILED", reason="deadline", detail=detail))
        return _finish(old, "FAILED", "deadline", detail)
    if not due:
        return old
    if old.state == "ARMED" and event.wall > old.not_after:
        return _finish(old, "REJECTED", "expired", "the desired document expired before the swap")
    return replace(old, until=None)


def _resumed(old: Deployment, event: Resumed) -> Deployment:
    if old.undo is not None:
        return replace(old, until=None)
    if old.settled:
        return old
    boots = old.boots + (0 if event.clean else 1)
    if old.state == "SOAKING" or (old.state == "ARMED" and event.active == old.wanted.bundle):
        return _resumed_active(old, event, boots)
    if old.state == "PROBING" and boots >= PROBE_BOOTS:
        return _finish(old, "REJECTED", "probe-crashed", f"the device restarted {boots} times while probing")
    # Restarts before the swap do not speak against a bundle that was not active yet; those of a probe may.
    return replace(_enter(old, old.state, event.now, event.wall), boots=boots if old.state == "PROBING" else 0)


def _resumed_active(old: Deployment, event: Resumed, boots: int) -> Deployment:
    soaking = replace(_enter(old, "SOAKING", event.now, event.wall), boots=boots)
    if event.active != old.wanted.bundle:
        detail = "the bundle was no longer linked after a restart"
        return _take_back(soaking, Undo(outcome="ROLLED_BACK", reason="lost", detail=detail))
    if boots >= UNCONFIRMED_BOOTS:
        detail = f"{boots} restarts before the soak was over"
        return _take_back(soaking, Undo(outcome="ROLLED_BACK", reason="unconfirmed", detail=detail))
    return soaking


def _perhaps_active(old: Deployment) -> bool:
    """Whether the slot may run the bundle now: it soaks, or a swap was asked for and its result is not known."""
    return old.state == "SOAKING" or (old.state == "ARMED" and old.until is None)


def _enter(old: Deployment, state: State, now: float, wall: float) -> Deployment:
    """The record in a state that is not settled, with that state's deadline."""
    extra, until = 0.0, None
    if state == "FETCHING":
        extra = old.wanted.size / SLOWEST_BYTES_PER_S
    elif state == "SOAKING":
        extra = old.wanted.health.soak_s
    elif state == "ARMED":
        activate = old.wanted.activate
        extra = max(0.0, min(activate.after - wall, activate.after - old.issued)) + old.jitter * activate.jitter_s
        until = now + extra
    deadline = now + DEADLINE_S[state] + extra
    return replace(old, state=state, reason="", detail="", deadline=deadline, until=until, boots=0, tries=0)


def _take_back(old: Deployment, undo: Undo) -> Deployment:
    """Decide to restore what was active before. The state changes only once that is done."""
    if old.fallback is None and undo.outcome == "ROLLED_BACK":
        undo = replace(undo, detail=f"{undo.detail}; the slot is empty, for there is no earlier bundle".lstrip("; "))
    return replace(old, undo=undo, until=None)


def _finish(old: Deployment, state: State, reason: str, detail: str) -> Deployment:
    return replace(old, state=state, reason=reason, detail=detail, deadline=math.inf, until=None, boots=0, tries=0)
