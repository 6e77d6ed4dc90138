"""Rollouts as a pure function, by property: whatever devices do, the rules of `rollouts` hold."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.fleet.rollouts import (
    Decisions,
    Member,
    Placed,
    Rollout,
    advances,
    decide,
    order,
)
from outrider.runtime.api_client.types import RolloutSettings
from outrider.runtime.messages import TERMINAL_STATES

STEPS = ("OFFERED", "ADMITTED", "FETCHING", "VERIFIED", "STAGED", "PROBING", "ARMED", "SOAKING")
VERDICTS = ("COMMITTED", "ROLLED_BACK", "REJECTED", "FAILED")


@dataclass
class World:
    """A group of devices, a rollout, and time."""

    rollout: Rollout
    members: dict[str, Member] = field(default_factory=dict)
    placed: dict[str, Placed] = field(default_factory=dict)
    now: float = 0.0
    exposed: set[str] = field(default_factory=set)
    last: Decisions | None = None

    def step(self) -> Decisions:
        decisions = decide(self.rollout, list(self.members.values()), list(self.placed.values()), self.now)
        for ended in decisions.end:
            old = self.placed.get(ended.device)
            base = old or Placed(device=ended.device, wave=-1, attempt=1, state="", updated=0.0)
            self.placed[ended.device] = msgspec.structs.replace(
                base, state=ended.state, reason=ended.reason, updated=self.now
            )
        for given_ in decisions.give:
            self.exposed.add(given_.device)
            self.placed[given_.device] = Placed(
                device=given_.device, wave=given_.wave, attempt=given_.attempt, state="PENDING", updated=self.now
            )
        self.rollout = msgspec.structs.replace(self.rollout, state=decisions.state)
        self.last = decisions
        return decisions

    def settle(self, verdict: str = "COMMITTED", rounds: int = 100) -> None:
        for _ in range(rounds):
            self.now += 1
            if not self.step().give and all(item.settled for item in self.placed.values()):
                return
            for name, item in self.placed.items():
                if not item.settled and self.members[name].online:
                    self.placed[name] = msgspec.structs.replace(item, state=verdict, updated=self.now)
        raise AssertionError("it does not settle")


def world(count: int, *, canary: int = 1, **more: object) -> World:
    rollout = Rollout(id=1, state="PENDING", canary=canary, seed="s", settings=RolloutSettings(**more))  # type: ignore[arg-type]
    members = {f"d{i}": Member(id=f"d{i}", online=True, bundle="b") for i in range(count)}
    return World(rollout, members)


def change(world: World, name: str, **changes: object) -> None:
    world.members[name] = msgspec.structs.replace(world.members[name], **changes)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 12),
    canary=st.integers(0, 4),
    limit=st.none() | st.integers(1, 3),
    bad=st.sampled_from([0.0, 0.3, 1.0]),
    percent=st.sampled_from([0.0, 30.0]),
)
def test_whatever_devices_do_the_rules_hold(
    seed: int, count: int, canary: int, limit: int | None, bad: float, percent: float
) -> None:
    rng = random.Random(seed)
    run = world(count, canary=canary, max_in_flight=limit, abort_percent=percent, step_timeout_s=50.0)
    for _ in range(120):
        run.now += rng.choice([1.0, 1.0, 10.0, 60.0])
        before = dict(run.placed)
        decisions = run.step()
        check_waves(run, before, decisions)
        check_reach(run, before, decisions)
        act(run, rng, bad)
    if run.rollout.state != "ABORTED":  # and in the end everything that comes online is reached
        for name in run.members:
            change(run, name, online=True, online_since=run.now)
        run.settle()
        if run.rollout.state != "ABORTED":
            assert run.rollout.state == "DONE"
            if all(item.state == "COMMITTED" for item in run.placed.values()):
                assert set(run.placed) == set(run.members)


def check_waves(run: World, before: dict[str, Placed], decisions: Decisions) -> None:
    wave0 = [item for item in run.placed.values() if item.wave == 0 and item.state != "SUPERSEDED"]
    later = [item for item in decisions.give if item.wave > 0 and item.attempt == 1]
    if later:
        assert len(wave0) >= run.rollout.canary
        assert all(before[item.device].state == "COMMITTED" for item in wave0), "a wave before its canary"
        limit = run.rollout.settings.max_in_flight
        flying = [i for i in run.placed.values() if i.wave > 0 and not i.settled and run.members[i.device].online]
        assert limit is None or len(flying) <= limit
    if not any(item.wave > 0 for item in run.placed.values()):
        assert len(run.exposed) <= run.rollout.canary, "more exposed than the canary"
    if decisions.state == "ABORTED":
        assert not decisions.give
        assert all(item.settled for item in run.placed.values())


def check_reach(run: World, before: dict[str, Placed], decisions: Decisions) -> None:
    for item in decisions.give:
        assert not run.members[item.device].flagged
        assert run.members[item.device].online or item.attempt > 1
        assert item.attempt <= run.rollout.settings.attempts or before[item.device].state == "SUPERSEDED"
    for ended in decisions.end:
        if ended.reason == "deadline":
            assert run.members[ended.device].online, "an offline device failed"


def act(run: World, rng: random.Random, bad: float) -> None:
    """Devices make progress, fail, come, go and join."""
    for name, item in list(run.placed.items()):
        if not item.settled and run.members[name].online and rng.random() < 0.5:
            state = rng.choice(STEPS) if rng.random() < 0.4 else "COMMITTED"
            if rng.random() < bad * 0.5:
                state = rng.choice(VERDICTS[1:])
            if advances(item.state, state):
                run.placed[name] = msgspec.structs.replace(item, state=state, updated=run.now)
    for name in list(run.members):
        if rng.random() < 0.1:
            change(run, name, online=not run.members[name].online, online_since=run.now)
    if rng.random() < 0.1 and len(run.members) < 20:
        name = f"d{len(run.members)}"
        run.members[name] = Member(id=name, online=True, bundle="b", online_since=run.now)


@settings(deadline=None, max_examples=60)
@given(count=st.integers(2, 30), canary=st.integers(1, 5), limit=st.integers(1, 5))
def test_a_bad_bundle_reaches_the_canary_and_no_more(count: int, canary: int, limit: int) -> None:
    run = world(count, canary=canary, max_in_flight=limit)
    run.settle("ROLLED_BACK")
    assert run.rollout.state == "ABORTED"
    assert len(run.exposed) <= canary


@settings(deadline=None, max_examples=60)
@given(count=st.integers(5, 30), limit=st.integers(1, 5))
def test_a_bundle_that_is_bad_after_the_canary_reaches_what_is_in_flight(count: int, limit: int) -> None:
    run = world(count, canary=1, max_in_flight=limit)
    run.step()
    [canary] = run.exposed
    run.placed[canary] = msgspec.structs.replace(run.placed[canary], state="COMMITTED")
    run.settle("ROLLED_BACK")
    assert run.rollout.state == "ABORTED"
    assert len(run.exposed) <= 1 + limit


def test_devices_are_taken_in_the_order_of_the_seeded_hash() -> None:
    run = world(8, canary=2)
    first = [item.device for item in run.step().give]
    assert first == sorted(run.members, key=lambda name: order("s", name))[:2]
    assert first == [item.device for item in world(8, canary=2).step().give]
    assert order("s", "a") != order("t", "a")


def test_a_device_that_joins_gets_it_also_after_done() -> None:
    run = world(3)
    run.settle()
    assert run.rollout.state == "DONE"
    run.members["late"] = Member(id="late", online=True, bundle="b")
    assert [item.device for item in run.step().give] == ["late"]
    assert run.rollout.state == "DONE"


def test_offline_is_pending_for_however_long() -> None:
    run = world(3)
    change(run, "d1", online=False)
    run.settle()
    run.now += 1e9
    decisions = run.step()
    assert (decisions.state, decisions.reason) == ("RUNNING", "1 offline")
    assert not decisions.end
    change(run, "d1", online=True, online_since=run.now)
    run.settle()
    assert run.rollout.state == "DONE"


def test_a_device_that_goes_away_in_the_middle_does_not_fail() -> None:
    run = world(1)
    run.step()
    run.placed["d0"] = msgspec.structs.replace(run.placed["d0"], state="FETCHING")
    change(run, "d0", online=False)
    run.now += 1e6
    assert run.step().end == ()
    # Back online it has its whole deadline again.
    change(run, "d0", online=True, online_since=run.now)
    run.now += 599
    assert run.step().end == ()


def test_an_online_device_past_its_deadline_is_tried_again_and_then_fails() -> None:
    run = world(2, canary=0, step_timeout_s=10.0, attempts=2)
    run.step()
    run.placed["d1"] = msgspec.structs.replace(run.placed["d1"], state="COMMITTED")
    run.now = 11.0
    decisions = run.step()
    assert [(item.device, item.attempt) for item in decisions.give] == [("d0", 2)]
    run.now = 22.0
    decisions = run.step()
    assert [item.reason for item in decisions.end] == ["deadline"]
    assert decisions.state == "ABORTED"
    assert "1 of 2 devices failed" in decisions.reason


def test_the_soak_is_no_silence() -> None:
    run = world(1, step_timeout_s=10.0, soak_s=100.0)
    run.step()
    run.placed["d0"] = msgspec.structs.replace(run.placed["d0"], state="SOAKING")
    run.now = 105.0
    assert run.step().end == ()
    run.now = 111.0
    assert run.step().give[0].attempt == 2


def test_the_abort_rule_has_a_percentage_and_a_minimum() -> None:
    run = world(10, canary=0, abort_percent=30.0, abort_minimum=2)
    run.step()
    states = {f"d{i}": "COMMITTED" if i < 7 else "ROLLED_BACK" for i in range(9)}
    for name, state in states.items():
        run.placed[name] = msgspec.structs.replace(run.placed[name], state=state)
    assert run.step().state == "RUNNING"  # 2 of 9 are 22 %
    run.placed["d9"] = msgspec.structs.replace(run.placed["d9"], state="REJECTED")
    decisions = run.step()
    assert (decisions.state, decisions.reason) == ("DONE", "3 failed")  # 30 % is not more than 30 %
    strict = world(3, canary=0, abort_percent=30.0, abort_minimum=2)
    strict.settle("ROLLED_BACK", rounds=3)
    assert strict.rollout.state == "ABORTED"


def test_flagged_devices_are_withheld_and_nothing_waits_for_them() -> None:
    run = world(3)
    change(run, "d2", flagged=True)
    run.settle()
    assert (run.rollout.state, run.exposed) == ("DONE", {"d0", "d1"})
    assert run.last is not None
    assert run.last.reason == "1 withheld"
    change(run, "d2", flagged=False)
    assert [item.device for item in run.step().give] == ["d2"]


def test_a_canary_that_is_flagged_in_the_middle_is_replaced() -> None:
    run = world(4)
    (first,) = run.step().give
    change(run, first.device, flagged=True)
    (second,) = run.step().give
    assert (second.wave, second.device != first.device) == (0, True)
    assert not run.step().give  # nothing goes further before this one has committed
    for name in set(run.members) - {first.device}:
        assert name == second.device or name not in run.exposed
    run.placed[second.device] = msgspec.structs.replace(run.placed[second.device], state="COMMITTED")
    assert {item.device for item in run.step().give} == set(run.members) - {first.device, second.device}
    for name in set(run.members) - {first.device}:
        run.placed[name] = msgspec.structs.replace(run.placed[name], state="COMMITTED")
    assert run.step().state == "DONE"


def test_a_device_without_a_bundle_is_recorded_and_served_once_there_is_one() -> None:
    run = world(2)
    change(run, "d1", bundle=None, refusal="no bundle for armv7")
    [ended] = run.step().end
    assert (ended.device, ended.reason, ended.detail) == ("d1", "no-bundle", "no bundle for armv7")
    run.settle()
    assert run.rollout.state == "DONE"
    assert run.last is not None
    assert run.last.reason == "1 without a bundle for their target"
    change(run, "d1", bundle="b2")
    [item] = run.step().give
    assert (item.device, item.bundle, item.attempt) == ("d1", "b2", 1)


def test_a_newer_rollout_takes_over_and_what_is_under_way_is_withdrawn() -> None:
    run = world(3)
    run.step()
    run.rollout = msgspec.structs.replace(run.rollout, superseded_by=2)
    decisions = run.step()
    assert (decisions.state, decisions.reason, decisions.give) == ("DONE", "superseded by rollout 2", ())
    assert [item.state for item in decisions.end] == ["SUPERSEDED"]
    # Should the newer one be aborted, this one serves its group again.
    run.rollout = msgspec.structs.replace(run.rollout, superseded_by=None)
    assert [item.attempt for item in run.step().give] == [2]


def test_pausing_gives_no_further_device_the_bundle() -> None:
    run = world(3, canary=0, max_in_flight=1)
    run.step()
    run.rollout = msgspec.structs.replace(run.rollout, state="PAUSED")
    [name] = run.exposed
    run.placed[name] = msgspec.structs.replace(run.placed[name], state="COMMITTED")
    assert run.step().give == ()
    run.rollout = msgspec.structs.replace(run.rollout, state="RUNNING")
    assert len(run.step().give) == 1


def test_a_device_that_leaves_the_group_is_let_go() -> None:
    run = world(3)
    run.step()
    [canary] = run.exposed
    del run.members[canary]
    decisions = run.step()
    assert [(item.device, item.state, item.reason) for item in decisions.end] == [(canary, "SUPERSEDED", "left")]
    assert len(decisions.give) == 1  # another one is the canary now


def test_an_empty_group_waits() -> None:
    run = world(0)
    assert run.step().state == "PENDING"
    run.members["d0"] = Member(id="d0", online=False, bundle="b")
    assert run.step().state == "PENDING"
    change(run, "d0", online=True)
    assert run.step().state == "RUNNING"


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(VERDICTS),
    st.randoms(use_true_random=False),
    st.integers(0, 8),
)
def test_duplicates_and_reordering_do_not_change_where_it_ends(verdict: str, rng: random.Random, cut: int) -> None:
    sent = [*STEPS[:cut], verdict]
    received = sent + [rng.choice(sent) for _ in range(max(1, len(sent) // 5))]
    rng.shuffle(received)
    state = "PENDING"
    for report in received:
        if advances(state, report):
            assert state not in TERMINAL_STATES
            state = report
    assert state == verdict


@pytest.mark.parametrize(
    ("current", "reported", "moves"),
    [
        ("COMMITTED", "ROLLED_BACK", True),
        ("ROLLED_BACK", "COMMITTED", False),
        ("FAILED", "COMMITTED", True),
        ("FAILED", "FETCHING", False),
        ("SUPERSEDED", "ROLLED_BACK", True),
        ("SOAKING", "FETCHING", False),
        ("PENDING", "SOAKING", True),
    ],
)
def test_a_deployment_only_moves_forward(current: str, reported: str, moves: bool) -> None:
    assert advances(current, reported) is moves
