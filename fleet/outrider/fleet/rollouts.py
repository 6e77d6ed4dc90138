"""What a rollout does next, as a pure function of what is known now.

```
PENDING ──first device given its bundle──▶ RUNNING ⇄ PAUSED
                                             │
                       all settled ──▶ DONE  └─▶ ABORTED   the canary failed, or too many devices did
```
Rules:

1. Devices are taken in the order of a seeded hash, so that the order is arbitrary, and the same every time.
2. The canary is wave 0. Nothing else is given the bundle until every device of a full canary has committed it.
3. Membership is read anew each time: a device that joins the group gets the release too, also after DONE.
4. Only devices that are online are given the bundle. An offline device is pending, never failed, whether it has not
   been reached yet or went away in the middle.
5. A flagged device is withheld: it is given nothing, and nothing waits for it.
6. A device with no bundle for its target is recorded as such (REJECTED, `no-bundle`); that is no failure. It is
   given the bundle once the release holds one.
7. An online device that stays in one state past the deadline has FAILED. A FAILED device is tried again until its
   attempts are used up; ROLLED_BACK and REJECTED are verdicts and stand.
8. A failed canary aborts, and so does the abort rule; what is still under way is then withdrawn.
9. A newer rollout to the same group takes this one's place, since both want the same slot.
10. A deployment only moves forward, whatever order messages come in (`advances`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from outrider.runtime.api_client.types import RolloutSettings, RolloutState
from outrider.runtime.messages import TERMINAL_STATES

PENDING = "PENDING"
NO_BUNDLE = "no-bundle"
CANARY_WAVE = 0
_FAILURES = ("FAILED", "ROLLED_BACK", "REJECTED")
_ORDER = (
    PENDING, "OFFERED", "ADMITTED", "FETCHING", "VERIFIED", "STAGED", "PROBING", "ARMED", "SOAKING",
)  # fmt: skip


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of inputs and decisions."""


class Rollout(_Record, frozen=True, kw_only=True):
    """The rollout itself. `superseded_by` is the newer rollout that takes its place, if any."""

    id: int
    state: RolloutState
    canary: int
    seed: str
    settings: RolloutSettings
    superseded_by: int | None = None


class Member(_Record, frozen=True, kw_only=True):
    """A device of the group. `bundle` is the one for its target, None where there is none, for the `refusal`."""

    id: str
    online: bool
    bundle: str | None
    refusal: str = ""
    flagged: bool = False
    online_since: float = 0.0


class Placed(_Record, frozen=True, kw_only=True):
    """A deployment of this rollout. `state` is PENDING or the device's own; `updated` is when it last changed."""

    device: str
    wave: int
    attempt: int
    state: str
    updated: float
    reason: str = ""

    @property
    def settled(self) -> bool:
        """Whether nothing more will come of this attempt."""
        return self.state in TERMINAL_STATES

    @property
    def unserved(self) -> bool:
        """Whether it only records that there was no bundle for the device."""
        return self.state == "REJECTED" and self.reason == NO_BUNDLE


class Given(_Record, frozen=True, kw_only=True):
    """Give a device its bundle: a new deployment, or a further attempt of the one there is."""

    device: str
    bundle: str
    wave: int
    attempt: int


class Ended(_Record, frozen=True, kw_only=True):
    """End a deployment in a terminal state, or record one that cannot be."""

    device: str
    state: str
    reason: str
    detail: str


class Decisions(_Record, frozen=True, kw_only=True):
    """What to do now. `reason` says why the rollout is in its state, or what it waits for."""

    state: RolloutState
    reason: str
    give: tuple[Given, ...] = ()
    end: tuple[Ended, ...] = ()


def decide(rollout: Rollout, members: Sequence[Member], placed: Sequence[Placed], now: float) -> Decisions:
    """The next step of one rollout, given its group's members and its deployments."""
    if rollout.state == "ABORTED":
        return Decisions(state="ABORTED", reason="", end=_withdraw(placed, "aborted"))
    if rollout.superseded_by is not None:
        why = f"superseded by rollout {rollout.superseded_by}"
        return Decisions(state="DONE", reason=why, end=_withdraw(placed, "superseded"))
    return _Round(rollout, members, placed, now).decide()


class _Round:
    """One call of `decide` for a rollout that is under way: each step sees what the steps before it changed."""

    def __init__(self, rollout: Rollout, members: Sequence[Member], placed: Sequence[Placed], now: float) -> None:
        self.rollout = rollout
        self.settings = rollout.settings
        self.members = {member.id: member for member in members}
        self.placed = {item.device: item for item in placed}
        self.now = now
        self.end: list[Ended] = []
        self.give: list[Given] = []

    def decide(self) -> Decisions:
        self._drop_departed()
        self._fail_overdue()
        self._record_unserved()
        broken = self._broken()
        if broken:
            self.end += _withdraw(self.placed.values(), "aborted")
            return self._decisions("ABORTED", broken)
        if self.rollout.state == "PAUSED":
            return self._decisions("PAUSED", "paused")
        self._try_again()
        self._open_wave()
        return self._decisions(*self._state())

    # The steps --------------------------------------------------------------------------------------------------

    def _drop_departed(self) -> None:
        for item in list(self.placed.values()):
            if item.device not in self.members:
                del self.placed[item.device]
                if not item.settled:
                    self.end.append(_ended(item.device, "SUPERSEDED", "left", "the device left the group"))

    def _fail_overdue(self) -> None:
        for item in list(self.placed.values()):
            member = self.members[item.device]
            if item.settled or member.flagged or not member.online:
                continue
            silent = self.now - max(item.updated, member.online_since)
            if silent > self._patience(item.state):
                detail = f"online, and {item.state} for {silent:.0f} s"
                self._set(item, state="FAILED", reason="deadline")
                self.end.append(_ended(item.device, "FAILED", "deadline", detail))

    def _patience(self, state: str) -> float:
        extra = {"SOAKING": self.settings.soak_s, "ARMED": self.settings.jitter_s}
        return self.settings.step_timeout_s + extra.get(state, 0.0)

    def _record_unserved(self) -> None:
        for member in self.members.values():
            if member.bundle is None and member.id not in self.placed and not member.flagged:
                self.end.append(_ended(member.id, "REJECTED", NO_BUNDLE, member.refusal))
                self.placed[member.id] = Placed(
                    device=member.id, wave=-1, attempt=1, state="REJECTED", updated=self.now, reason=NO_BUNDLE
                )

    def _broken(self) -> str:
        """Why the rollout must be aborted, or nothing."""
        if self.rollout.state == "DONE":
            return ""
        failed = [item for item in self.placed.values() if self._failed(item)]
        for item in failed:
            if item.wave == CANARY_WAVE:
                return f"the canary {item.device} ended {item.state}" + (f": {item.reason}" if item.reason else "")
        finished = len(failed) + self._committed()
        if failed and len(failed) >= self.settings.abort_minimum:
            percent = 100.0 * len(failed) / finished
            if percent > self.settings.abort_percent:
                return f"{len(failed)} of {finished} devices failed, more than {self.settings.abort_percent:g} %"
        return ""

    def _try_again(self) -> None:
        for item in list(self.placed.values()):
            member = self.members[item.device]
            again = item.state == "FAILED" and item.attempt < self.settings.attempts
            if again and not member.flagged and member.bundle is not None:
                self._assign(member, item.wave)

    def _open_wave(self) -> None:
        waiting = [member for member in self.members.values() if self._awaits(member)]
        ready = sorted((m for m in waiting if m.online), key=lambda member: order(self.rollout.seed, member.id))
        canary = [item for item in self.placed.values() if item.wave == CANARY_WAVE and self._speaks(item)]
        if len(canary) < self.rollout.canary:
            for member in ready[: self.rollout.canary - len(canary)]:
                self._assign(member, CANARY_WAVE)
        elif all(item.state == "COMMITTED" for item in canary):
            wave = max((item.wave for item in self.placed.values()), default=CANARY_WAVE) + 1
            for member in ready[: self._room()]:
                self._assign(member, max(wave, CANARY_WAVE + 1))

    def _speaks(self, item: Placed) -> bool:
        """Whether a canary tells, or will tell, how the bundle does. In place of others another device is taken."""
        return item.state != "SUPERSEDED" and (item.settled or not self.members[item.device].flagged)

    def _room(self) -> int | None:
        if self.settings.max_in_flight is None:
            return None
        moving = sum(
            1 for i in self.placed.values() if not i.settled and self._reachable(i.device) and i.wave != CANARY_WAVE
        )
        return max(0, self.settings.max_in_flight - moving)

    def _state(self) -> tuple[RolloutState, str]:
        if self.rollout.state == "DONE":
            return "DONE", self._failures()
        waiting = self._waiting()
        served = [item for item in self.placed.values() if not item.unserved and item.state != "SUPERSEDED"]
        if not served:
            nobody = "no bundle of the release fits a device of the group" if self.placed else "the group has no device"
            return "PENDING" if self.rollout.state == "PENDING" else "RUNNING", waiting or nobody
        if waiting:
            return "RUNNING", waiting
        if not self._committed():
            if any(self._failed(item) for item in served):
                return "ABORTED", "no device committed it"
            return "RUNNING", ""
        return "DONE", self._failures()

    # What is known ----------------------------------------------------------------------------------------------

    def _awaits(self, member: Member) -> bool:
        """Whether the device may still be given the bundle in a new wave."""
        if member.flagged or member.bundle is None:
            return False
        item = self.placed.get(member.id)
        return item is None or item.state == "SUPERSEDED" or item.unserved

    def _reachable(self, device: str) -> bool:
        member = self.members[device]
        return member.online and not member.flagged

    def _failed(self, item: Placed) -> bool:
        if item.state == "FAILED" and item.attempt < self.settings.attempts:
            return False
        return item.state in _FAILURES and not item.unserved

    def _committed(self) -> int:
        return sum(1 for item in self.placed.values() if item.state == "COMMITTED")

    def _waiting(self) -> str:
        """What the rollout waits for, in words; nothing where every device that counts has settled."""
        moving = [i for i in self.placed.values() if not i.settled and not self.members[i.device].flagged]
        updating = sum(1 for item in moving if self.members[item.device].online)
        unreached = [member for member in self.members.values() if self._awaits(member)]
        offline = len(moving) - updating + sum(1 for member in unreached if not member.online)
        parts = [
            (updating, "updating"),
            (sum(1 for member in unreached if member.online), "waiting for their wave"),
            (offline, "offline"),
        ]
        text = ", ".join(f"{count} {words}" for count, words in parts if count)
        return ", ".join(filter(None, [text, self._aside()])) if text else ""

    def _failures(self) -> str:
        failed = sum(1 for item in self.placed.values() if self._failed(item))
        return ", ".join(filter(None, [f"{failed} failed" if failed else "", self._aside()]))

    def _aside(self) -> str:
        unserved = sum(1 for item in self.placed.values() if item.unserved)
        withheld = sum(1 for member in self.members.values() if member.flagged)
        parts = [(unserved, "without a bundle for their target"), (withheld, "withheld")]
        return ", ".join(f"{count} {words}" for count, words in parts if count)

    # Changes ----------------------------------------------------------------------------------------------------

    def _assign(self, member: Member, wave: int) -> None:
        assert member.bundle is not None
        before = self.placed.get(member.id)
        attempt = 1 if before is None else before.attempt + (0 if before.unserved else 1)
        self.give.append(Given(device=member.id, bundle=member.bundle, wave=wave, attempt=attempt))
        self.placed[member.id] = Placed(device=member.id, wave=wave, attempt=attempt, state=PENDING, updated=self.now)

    def _set(self, item: Placed, *, state: str, reason: str) -> None:
        self.placed[item.device] = msgspec.structs.replace(item, state=state, reason=reason, updated=self.now)

    def _decisions(self, state: RolloutState, reason: str) -> Decisions:
        # A device that fails and is tried again in one step is not ended in between.
        given = {item.device for item in self.give}
        end = tuple(item for item in self.end if item.device not in given)
        return Decisions(state=state, reason=reason, give=tuple(self.give), end=end)


def advances(current: str, reported: str) -> bool:
    """Whether a device's report moves one attempt of a deployment on; one that does not is late or a duplicate.

    A device goes through the states of an attempt in one direction. A committed bundle may still be rolled back, and
    what the fleet had given up (a deadline, a withdrawal) may turn out to be running after all.
    """
    if current == "COMMITTED":
        return reported == "ROLLED_BACK"
    if current == "ROLLED_BACK":
        return False
    if current in TERMINAL_STATES:
        return reported in ("COMMITTED", "ROLLED_BACK")
    if reported in TERMINAL_STATES:
        return True
    return _ORDER.index(reported) > _ORDER.index(current)


def order(seed: str, device: str) -> str:
    """The device's place in the rollout: ascending by this text."""
    return hashlib.sha256(f"{seed}\0{device}".encode()).hexdigest()


def _withdraw(placed: Iterable[Placed], reason: str) -> tuple[Ended, ...]:
    return tuple(_ended(item.device, "SUPERSEDED", reason, "") for item in placed if not item.settled)


def _ended(device: str, state: str, reason: str, detail: str) -> Ended:
    return Ended(device=device, state=state, reason=reason, detail=detail)
