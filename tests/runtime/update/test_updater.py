"""The state machine alone: its rules one by one, then any order of offers, results, crashes and clock jumps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from outrider.runtime import updater
from outrider.runtime.messages import TERMINAL_STATES, Activate, ArtifactTrial, Health, SlotDesired
from outrider.runtime.updater import (
    DEADLINE_S,
    Deployment,
    Failed,
    HealthFailed,
    Offered,
    Resumed,
    Succeeded,
    Tick,
    Withdrawn,
    step,
    wake_at,
)

WALL = 1_700_000_000.0
WAY = ("admit", "reserve", "fetch", "stage", "inspect", "probe")


def _wanted(bundle: str, **changes: Any) -> SlotDesired:
    fields: dict[str, Any] = {"release": 1, "health": Health(soak_s=10.0), **changes}
    return SlotDesired(
        bundle=bundle, size=1000, name="m", version="1", target="host", signature="", artifacts=(), **fields
    )


def _offer(bundle: str = "b", rev: int = 1, *, job: str | None = None, now: float = 0.0, **changes: Any) -> Offered:
    fields: dict[str, Any] = {
        "wanted": _wanted(bundle),
        "issued": WALL,
        "not_after": WALL + 3600,
        "active": "a",
        "previous": None,
        "jitter": 0.5,
        **changes,
    }
    return Offered(slot="main", rev=rev, job=job or f"j{rev}", attempt=1, now=now, **fields)


def _done(deployment: Deployment, action: Any, now: float = 0.0, wall: float = WALL) -> Deployment:
    new, _ = step(deployment, Succeeded(key=deployment.key, action=action, now=now, wall=wall))
    assert new is not None
    return new


def _fail(deployment: Deployment, action: Any, reason: str = "x", *, retry: bool = False) -> Deployment:
    new, _ = step(
        deployment, Failed(key=deployment.key, action=action, reason=reason, detail="d", retry=retry, now=0.0)
    )
    assert new is not None
    return new


def _at(state: str, **changes: Any) -> Deployment:
    """An update that has come as far as `state`."""
    deployment, _ = step(None, _offer(**changes))
    assert deployment is not None
    for action in WAY:
        if deployment.state == state:
            return deployment
        deployment = _done(deployment, action)
    if state == "ARMED":
        return deployment
    deployment = step(deployment, Tick(now=0.0, wall=WALL))[0]
    assert deployment is not None
    deployment = _done(deployment, "swap")
    if state == "SOAKING":
        return deployment
    deployment = step(_done(deployment, "activate"), Tick(now=10.0, wall=WALL))[0]
    assert deployment is not None
    assert deployment.state == state == "COMMITTED"
    return deployment


BEFORE_SWAP = ["OFFERED", "ADMITTED", "FETCHING", "VERIFIED", "STAGED", "PROBING", "ARMED"]
OPEN = [*BEFORE_SWAP, "SOAKING"]


@pytest.mark.parametrize("state", [*OPEN, "COMMITTED"])
def test_the_same_key_changes_nothing_but_the_revision(state: str) -> None:
    before = _at(state)
    after, _ = step(before, _offer(rev=7, job="j1"))
    assert after == replace(before, rev=7)


@pytest.mark.parametrize("state", [*OPEN, "COMMITTED"])
def test_an_older_revision_is_ignored(state: str) -> None:
    before = _at(state, rev=5)
    assert step(before, _offer("c", rev=4))[0] == before
    assert step(before, _offer("c", rev=5, job="other"))[0] == before


@pytest.mark.parametrize("state", BEFORE_SWAP)
def test_a_newer_offer_supersedes_before_the_swap(state: str) -> None:
    ended, actions = step(_at(state), _offer("c", rev=2))
    assert ended is not None
    assert (ended.state, ended.reason, actions) == ("SUPERSEDED", "newer", ())
    fresh, actions = step(ended, _offer("c", rev=2))
    assert fresh is not None
    assert (fresh.state, fresh.wanted.bundle, actions) == ("OFFERED", "c", ("admit",))


def test_a_newer_offer_while_soaking_restores_first() -> None:
    waiting, actions = step(_at("SOAKING"), _offer("c", rev=2))
    assert waiting is not None
    assert (waiting.state, actions) == ("SOAKING", ("restore",))
    assert step(waiting, _offer("c", rev=2))[0] == waiting
    assert _done(waiting, "restore").state == "SUPERSEDED"


def test_a_swap_of_unknown_result_is_restored_before_the_update_ends() -> None:
    asked = step(_at("ARMED"), Tick(now=0.0, wall=WALL))[0]
    for event in (_offer("c", rev=2), Tick(now=10_000.0, wall=WALL)):
        new, actions = step(asked, event)
        assert new is not None
        assert (new.state, actions) == ("ARMED", ("restore",))
        assert _done(new, "restore").state in ("SUPERSEDED", "FAILED")


def test_a_first_bundle_is_not_taken_away_for_an_offer() -> None:
    ended, actions = step(_at("SOAKING", active=None), _offer("c", rev=2, active="b"))
    assert ended is not None
    assert (ended.state, actions) == ("SUPERSEDED", ())


def test_what_is_active_is_committed_at_once() -> None:
    done, actions = step(None, _offer("a"))
    assert done is not None
    assert (done.state, done.reason, actions) == ("COMMITTED", "already-active", ("collect",))


@pytest.mark.parametrize("state", BEFORE_SWAP)
def test_a_deadline_ends_each_state(state: str) -> None:
    before = _at(state)
    assert before.deadline >= DEADLINE_S[before.state]
    before = replace(before, until=1e9 if state == "ARMED" else None)
    late, _ = step(before, Tick(now=before.deadline, wall=WALL))
    assert late is not None
    assert (late.state, late.reason) == ("FAILED", "deadline")
    assert step(before, Tick(now=before.deadline - 1, wall=WALL))[0] == before


def test_a_soak_that_never_begins_is_rolled_back() -> None:
    soaking = _at("SOAKING")
    late, actions = step(soaking, Tick(now=soaking.deadline, wall=WALL))
    assert late is not None
    assert late.undo is not None
    assert (late.undo.outcome, late.undo.reason, actions) == ("ROLLED_BACK", "deadline", ("restore",))


def test_what_cannot_be_reached_is_tried_again_ever_later() -> None:
    deployment, waits = _at("FETCHING"), []
    for _ in range(12):
        deployment = _fail(deployment, "fetch", "unavailable", retry=True)
        assert deployment.state == "FETCHING"
        assert deployment.until is not None
        waits.append(deployment.until)
        again, actions = step(deployment, Tick(now=deployment.until, wall=WALL))
        assert actions == ("fetch",)
        assert again is not None
        deployment = again
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (1.0, 300.0)


@pytest.mark.parametrize(
    ("state", "action", "reason", "ends"),
    [
        ("OFFERED", "admit", "isa", "REJECTED"),
        ("ADMITTED", "reserve", "disk", "REJECTED"),
        ("FETCHING", "fetch", "disk", "REJECTED"),
        ("FETCHING", "fetch", "digest", "FAILED"),
        ("VERIFIED", "stage", "storage", "FAILED"),
        ("VERIFIED", "stage", "disk", "REJECTED"),
        ("STAGED", "inspect", "bundle", "REJECTED"),
        ("PROBING", "probe", "golden", "REJECTED"),
    ],
)
def test_how_failures_end(state: str, action: str, reason: str, ends: str) -> None:
    ended = _fail(_at(state), action, reason)
    assert (ended.state, ended.reason) == (ends, reason)


@pytest.mark.parametrize("passed", [True, False])
def test_what_a_probe_found_stays_in_the_record(passed: bool) -> None:
    probing, found = _at("PROBING"), (ArtifactTrial(candidate="c", passed=passed, kept=passed),)
    fields: dict[str, Any] = {"key": probing.key, "action": "probe", "now": 0.0, "trials": found}
    result = Succeeded(**fields, wall=WALL) if passed else Failed(**fields, reason="golden", detail="", retry=False)
    probed, _ = step(probing, result)
    assert probed is not None
    assert (probed.state, probed.trials) == ("ARMED" if passed else "REJECTED", found)
    if passed:
        due, _ = step(probed, Tick(now=probed.until or 0.0, wall=WALL))
        assert due is not None
        probed = _done(_done(due, "swap"), "activate")
        assert (probed.state, probed.trials) == ("SOAKING", found)
    assert step(_fail(_at("STAGED"), "inspect"), _offer("c", 2))[0].trials == ()  # type: ignore[union-attr]


def test_a_swap_waits_for_its_time() -> None:
    activate = Activate(after=WALL + 100, jitter_s=10)
    armed = _at("ARMED", wanted=_wanted("b", activate=activate))
    assert armed.until == 105.0
    assert step(armed, Tick(now=104.0, wall=WALL))[1] == ()
    assert step(armed, Tick(now=105.0, wall=WALL))[1] == ("swap",)
    assert step(armed, Tick(now=105.0, wall=WALL + 4000))[0].state == "REJECTED"  # type: ignore[union-attr]


def test_a_clock_that_is_wrong_by_years_delays_nothing_for_years() -> None:
    probing = _at("PROBING", wanted=_wanted("b", activate=Activate(after=WALL + 100)))
    for years in (-10, 10):
        armed = _done(probing, "probe", wall=WALL + years * 365 * 86_400)
        assert armed.until is not None
        assert 0 <= armed.until <= 100


def test_two_unconfirmed_boots_roll_back_but_orderly_ones_do_not() -> None:
    soaking = _at("SOAKING")
    for _ in range(5):
        soaking, actions = step(soaking, Resumed(active="b", clean=True, now=0.0, wall=WALL))  # type: ignore[assignment]
        assert actions == ("activate",)
    soaking, actions = step(soaking, Resumed(active="b", clean=False, now=0.0, wall=WALL))  # type: ignore[assignment]
    assert actions == ("activate",)
    soaking, actions = step(soaking, Resumed(active="b", clean=False, now=0.0, wall=WALL))  # type: ignore[assignment]
    assert actions == ("restore",)
    assert _done(soaking, "restore").reason == "unconfirmed"


def test_a_swap_that_was_not_journalled_is_found_after_a_restart() -> None:
    soaking, actions = step(_at("ARMED"), Resumed(active="b", clean=False, now=0.0, wall=WALL))
    assert soaking is not None
    assert (soaking.state, soaking.boots, actions) == ("SOAKING", 1, ("activate",))
    _, actions = step(soaking, Resumed(active="b", clean=False, now=0.0, wall=WALL))
    assert actions == ("restore",)


def test_restarts_before_the_swap_do_not_speak_against_the_bundle() -> None:
    armed: Deployment | None = _at("ARMED")
    for _ in range(3):
        armed, actions = step(armed, Resumed(active="a", clean=False, now=0.0, wall=WALL))
        assert armed is not None
        assert armed.state == "ARMED"
    soaking, actions = step(armed, Resumed(active="b", clean=False, now=0.0, wall=WALL))
    assert soaking is not None
    assert (soaking.state, soaking.boots, actions) == ("SOAKING", 1, ("activate",))


def test_a_probe_that_takes_the_machine_down_is_not_tried_for_ever() -> None:
    probing: Deployment | None = _at("PROBING")
    for _ in range(updater.PROBE_BOOTS):
        assert probing is not None
        assert probing.state == "PROBING"
        probing, _ = step(probing, Resumed(active="a", clean=False, now=0.0, wall=WALL))
    assert probing is not None
    assert (probing.state, probing.reason) == ("REJECTED", "probe-crashed")


@pytest.mark.parametrize("state", BEFORE_SWAP)
def test_withdrawn_before_the_swap(state: str) -> None:
    ended, _ = step(_at(state), Withdrawn(rev=2))
    assert ended is not None
    assert (ended.state, ended.reason, ended.rev) == ("SUPERSEDED", "withdrawn", 2)


def test_withdrawn_later_changes_nothing_but_the_revision() -> None:
    for state in ("SOAKING", "COMMITTED"):
        assert step(_at(state), Withdrawn(rev=2))[0] == replace(_at(state), rev=2)


def test_a_failed_first_bundle_says_that_the_slot_is_empty() -> None:
    soaking = _at("SOAKING", active=None)
    undone, _ = step(soaking, HealthFailed(bundle=None, reason="crashes", detail="", now=0.0))
    assert undone is not None
    assert "the slot is empty" in _done(undone, "restore").detail


def test_nothing_comes_of_nothing() -> None:
    assert step(None, Tick(now=0.0, wall=WALL)) == (None, ())
    assert step(None, Withdrawn(rev=3)) == (None, ())


class Device(RuleBasedStateMachine):
    """A device whose disk holds two links and the bundles that passed verification; it may die between any two acts.

    `record` is what the journal holds; an act changes the disk, then its result is journalled by the next step.
    """

    bundles = ("a", "b", "c", "d")

    @initialize(factory=st.booleans())
    def start(self, factory: bool) -> None:
        self.record: Deployment | None = None
        self.pending: tuple[updater.Action, ...] = ()
        self.current: str | None = "a" if factory else None
        self.previous: str | None = None
        self.sound = {"a"} if factory else set()
        self.verified: set[str] = set()
        self.confirmed = {"a"} if factory else set()
        self.loaded: str | None = self.current
        self.now, self.wall = 0.0, WALL
        self.documents: list[tuple[int, str, int, str]] = []  # rev, job, attempt, bundle
        self.results: list[updater.Event] = []
        self.soaked: list[updater.Key] = []
        self.ended: list[tuple[updater.Key, str]] = []
        self.emptied = not factory
        self.boots = 0

    def _apply(self, event: updater.Event) -> None:
        old = self.record
        new, self.pending = step(old, event)
        if new is not None and new != old:
            self._check_move(old, new)
            self.record = new
        assert len(self.pending) <= 1

    def _check_move(self, old: Deployment | None, new: Deployment) -> None:
        if old is not None and old.undo is not None and new.undo is not None:
            assert old.undo == new.undo
        moved = old is None or (old.key, old.state) != (new.key, new.state)
        if not moved:
            return
        if new.state == "OFFERED":
            assert new.fallback in self.confirmed or self.previous not in self.confirmed
        if new.state == "SOAKING":
            self.soaked.append(new.key)
            self.boots = self.boots if old is not None and old.key == new.key else 0
        if new.state in ("FAILED", "REJECTED"):
            assert self.current != new.wanted.bundle or new.fallback is None
        if new.state in TERMINAL_STATES:
            self.ended.append((new.key, new.state))
        if new.state == "COMMITTED":
            assert self.current == new.wanted.bundle
            self.confirmed.add(new.wanted.bundle)
        if new.state == "ROLLED_BACK":
            assert self.current == new.fallback

    def _offered(self, document: tuple[int, str, int, str]) -> Offered:
        rev, job, attempt, bundle = document
        return Offered(
            slot="main",
            rev=rev,
            job=job,
            attempt=attempt,
            wanted=_wanted(bundle),
            issued=WALL,
            not_after=WALL + 1e12,
            active=self.current,
            previous=self.previous,
            jitter=0.5,
            now=self.now,
        )

    def _working(self) -> bool:
        return self.record is not None and not self.record.settled

    def _take_up(self) -> None:
        """What the worker does between two acts: the newest document stays on offer until it is taken up."""
        for _ in range(2):
            if self.record is None or (self.record.rev < self.documents[-1][0] and self.record.undo is None):
                self._apply(self._offered(self.documents[-1]))

    @rule(bundle=st.sampled_from(bundles), again=st.booleans())
    def newer_document(self, bundle: str, again: bool) -> None:
        rev = len(self.documents) + 1
        if again and self.documents:
            _, job, attempt, bundle = self.documents[-1]
            self.documents.append((rev, job, attempt, bundle))
        else:
            self.documents.append((rev, f"j{rev}", 1, bundle))
        self._take_up()

    @precondition(lambda self: len(self.documents) > 1)
    @rule(data=st.data())
    def duplicated_or_late_document(self, data: st.DataObject) -> None:
        self._apply(self._offered(data.draw(st.sampled_from(self.documents))))

    @precondition(lambda self: self._working())
    @rule()
    def withdrawn(self) -> None:
        rev = len(self.documents) + 1
        self.documents.append((rev, *self.documents[-1][1:]))
        self._apply(Withdrawn(rev=rev))

    @precondition(lambda self: self.results)
    @rule(data=st.data())
    def duplicated_or_late_result(self, data: st.DataObject) -> None:
        """A result of another key or of an act that was done before is not one of the present act."""
        event: Any = data.draw(st.sampled_from(self.results))
        if self.record is not None and event.key == self.record.key and event.action in self.pending:
            return
        before = self.record
        self._apply(event)
        assert self.record == before

    @precondition(lambda self: self.pending)
    @rule(
        outcome=st.sampled_from(
            ["done", "done", "done", "done", "done", "fails", "unreachable", "crash", "half", "unknown"]
        ),
    )
    def act(self, outcome: str) -> None:
        action, deployment = self.pending[0], self.record
        assert deployment is not None
        if outcome in ("done", "crash", "half", "unknown"):
            self._do(action, deployment, half=outcome == "half")
        if outcome in ("crash", "half"):
            self._restart(clean=False)
        elif outcome == "unknown":
            return  # done, but the journal could not be written: it is asked for again
        elif action == "collect":
            self.pending = ()
        else:
            fields: dict[str, Any] = {"key": deployment.key, "action": action, "now": self.now}
            if outcome == "done":
                self._result(Succeeded(wall=self.wall, **fields))
            else:
                retry = outcome == "unreachable"
                self._result(Failed(reason="r", detail="", retry=retry, **fields))
        if self.documents:
            self._take_up()

    @precondition(lambda self: self._working())
    @rule(state=st.sampled_from(["PROBING", "ARMED", "SOAKING", "COMMITTED"]))
    def runs_on(self, state: str) -> None:
        """Nothing goes wrong until the update is that far, so that the late states are not rare."""
        for _ in range(12):
            if self.record is None or self.record.settled or self.record.state == state:
                return
            if self.pending:
                self.act("done")
            else:
                self.time_to_wake()

    def _result(self, event: updater.Event) -> None:
        self.results.append(event)
        self._apply(event)

    def _do(self, action: str, deployment: Deployment, *, half: bool) -> None:
        bundle = deployment.wanted.bundle
        if action == "fetch":
            self.verified.add(bundle)
        elif action == "probe":
            self.sound.add(bundle)
        elif action == "swap":
            self.previous = deployment.fallback or self.previous
            if not half and self.current != bundle:
                self.current = bundle
                self.confirmed.discard(bundle)
                self.boots = 0
        elif action == "activate":
            assert self.current == bundle
            self.loaded = bundle
        elif action == "restore":
            self.current = deployment.fallback
            self.emptied = self.emptied or deployment.fallback is None
            if not half:
                if self.previous == self.current:
                    self.previous = None
                self.loaded = self.current

    @precondition(lambda self: self._working())
    @rule(seconds=st.floats(0.0, 20.0), jump=st.sampled_from([0.0, 0.0, -3e8, 3e8]))
    def time_passes(self, seconds: float, jump: float) -> None:
        self.now += seconds
        self.wall += seconds + jump
        self._apply(Tick(now=self.now, wall=self.wall))

    @precondition(lambda self: self._working())
    @rule()
    def time_to_wake(self) -> None:
        due = None if self.record is None else wake_at(self.record)
        if due is not None:
            self.now = max(self.now, due)
            self._apply(Tick(now=self.now, wall=self.wall))

    @precondition(lambda self: self.record is not None and self.record.state in ("SOAKING", "COMMITTED"))
    @rule(known=st.booleans())
    def health_fails(self, known: bool) -> None:
        self._apply(HealthFailed(bundle=self.current if known else None, reason="h", detail="", now=self.now))

    @precondition(lambda self: self._working())
    @rule(clean=st.booleans())
    def restarts(self, clean: bool) -> None:
        self._restart(clean=clean)

    def _restart(self, *, clean: bool) -> None:
        self.now = 0.0  # another process, another monotonic clock
        self.pending = ()
        self.loaded = self.current
        trying = self.record is not None and self.record.state in ("ARMED", "SOAKING") and self.record.undo is None
        trying = trying and self.record.wanted.bundle == self.current not in self.confirmed
        self.boots += trying and not clean
        self._apply(Resumed(active=self.current, clean=clean, now=self.now, wall=self.wall))
        if trying:
            assert self.pending == (("restore",) if self.boots >= updater.UNCONFIRMED_BOOTS else ("activate",))
        if self.documents:
            self._take_up()

    @invariant()
    def what_runs_was_probed(self) -> None:
        for bundle in (self.current, self.previous, self.loaded):
            assert bundle is None or bundle in self.sound

    @invariant()
    def a_slot_is_emptied_only_for_want_of_an_earlier_bundle(self) -> None:
        assert self.current is not None or self.emptied

    @invariant()
    def an_update_is_activated_once_and_ends_once(self) -> None:
        assert len(self.soaked) == len(set(self.soaked))
        ended = [key for key, state in self.ended if state != "ROLLED_BACK"]
        assert len(ended) == len(set(ended))

    @invariant()
    def it_is_settled_or_something_is_due(self) -> None:
        if self.record is not None and not self.record.settled:
            assert self.pending or wake_at(self.record) is not None

    def teardown(self) -> None:
        """With nothing in the way the last document is fulfilled, or its update had ended before."""
        for _ in range(100):
            if self.documents:
                self._take_up()
            if self.pending:
                self.act("done")
            elif self.record is not None and not self.record.settled:
                self.time_to_wake()
        if self.record is None:
            return
        assert self.record.settled
        if self.documents:
            assert self.record.rev == self.documents[-1][0]
        if self.record.state == "COMMITTED":
            assert self.current == self.loaded == self.record.wanted.bundle


TestDevice = Device.TestCase
TestDevice.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
