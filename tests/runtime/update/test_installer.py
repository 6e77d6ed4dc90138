"""An installer with real bundles and in-process sources: the way through, and every way it says no."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from outrider.runtime.errors import (
    BadMessageError,
    BadSignatureError,
    StaleRevisionError,
    TrustError,
    UnknownKeyError,
    UnsignedError,
)
from outrider.runtime.messages import Activate, ArtifactNeed, Health
from outrider.runtime.target import Requirements
from outrider.runtime.trust import DESIRED_TYPE, decode_envelope, encode_envelope, generate_key, sign

WAY = ["OFFERED", "ADMITTED", "FETCHING", "VERIFIED", "STAGED", "PROBING", "ARMED", "SOAKING", "COMMITTED"]


def _lying(made: Any, **changes: Any) -> Any:
    """The same bundle, wanted in other words."""
    return dataclasses.replace(made, wanted=msgspec.structs.replace(made.wanted, **changes))


def test_a_bundle_goes_all_the_way(fleet: Any, make_device: Callable[..., Any]) -> None:
    device, first = make_device(), fleet.bundle("1")
    device.installer.offer(fleet.desired(1, first))
    device.wait("COMMITTED")
    assert [event.to_state for event in device.events()] == WAY
    assert [event.from_state for event in device.events()] == [None, *WAY[:-1]]
    assert [event.seq for event in device.events()] == list(range(1, len(WAY) + 1))
    assert device.served == [first.sha256]
    assert device.installer.active_bundle("main").read_bytes() == first.path.read_bytes()
    report = device.installer.report()
    assert report.revision == 1
    assert report.slots["main"].active.version == "1"
    assert report.slots["main"].state == "COMMITTED"
    assert report.slots["main"].staging is None
    assert report.disk.total > report.disk.free > 0


def test_a_second_bundle_keeps_the_first_as_previous_and_removes_older_ones(
    fleet: Any, make_device: Callable[..., Any]
) -> None:
    device = make_device()
    made = [fleet.bundle(str(n)) for n in (1, 2, 3)]
    for rev, bundle in enumerate(made, start=1):
        device.installer.offer(fleet.desired(rev, bundle))
        device.wait("COMMITTED", rev=rev)
    slots = device.store.slots
    assert (slots.current("main"), slots.previous("main")) == (made[2].sha256, made[1].sha256)
    end = time.monotonic() + 5
    while (slots.has(made[0].sha256) or list(slots.staging.iterdir())) and time.monotonic() < end:
        time.sleep(0.01)
    assert not slots.has(made[0].sha256)
    assert list(slots.staging.iterdir()) == []
    assert device.served == [one.sha256 for one in made]


def test_the_same_offer_again_changes_nothing(fleet: Any, make_device: Callable[..., Any]) -> None:
    device, first = make_device(), fleet.bundle("1")
    envelope = fleet.desired(1, first)
    for _ in range(3):
        device.installer.offer(envelope)
    device.wait("COMMITTED")
    device.installer.offer(envelope)
    device.installer.offer(fleet.desired(2, first, job="j1"))
    device.wait("COMMITTED", rev=2)
    assert [event.to_state for event in device.events()] == WAY
    assert device.installer.report().revision == 2


def test_what_is_active_already_is_committed_at_once(fleet: Any, make_device: Callable[..., Any]) -> None:
    device, first = make_device(), fleet.bundle("1")
    device.installer.offer(fleet.desired(1, first))
    device.wait("COMMITTED")
    device.installer.offer(fleet.desired(2, first))
    device.wait("COMMITTED", rev=2)
    assert device.reasons()[0] == "already-active"
    assert device.served == [first.sha256]


def test_a_restart_serves_from_disk_without_a_fleet(fleet: Any, make_device: Callable[..., Any]) -> None:
    first = fleet.bundle("1")
    before = make_device()
    before.installer.offer(fleet.desired(5, first))
    before.wait("COMMITTED")
    before.close()
    after = make_device(sources=[], boot_id="boot-2")
    assert after.served == [first.sha256]
    assert after.installer.report().revision == 5
    assert after.store.boots() == 2


class TestRefusedDocuments:
    """A document that must not count changes nothing, and says why once."""

    @pytest.fixture
    def device(self, fleet: Any, make_device: Callable[..., Any]) -> Any:
        device = make_device()
        device.installer.offer(fleet.desired(5, fleet.bundle("1"), rollback_floor=1))
        device.wait("COMMITTED")
        return device

    def _refused(self, device: Any, envelope: bytes, error: type[Exception], code: str, caplog: Any) -> None:
        before = (device.installer.report(), len(device.events()))
        caplog.clear()
        for _ in range(2):
            with pytest.raises(error):
                device.installer.offer(envelope)
        assert device.installer.refused == {code: 2}
        assert sum("was refused" in record.message for record in caplog.records) == 1
        after = device.installer.report()
        assert (after.revision, after.slots, len(device.events())) == (before[0].revision, before[0].slots, before[1])

    def test_unsigned(self, fleet: Any, device: Any, caplog: Any) -> None:
        envelope = decode_envelope(fleet.desired(6, fleet.bundle("2")))
        bare = encode_envelope(msgspec.structs.replace(envelope, signatures=()))
        self._refused(device, bare, UnsignedError, "unsigned", caplog)

    def test_signed_by_a_stranger(self, fleet: Any, device: Any, caplog: Any) -> None:
        envelope = fleet.desired(6, fleet.bundle("2"), key=generate_key())
        self._refused(device, envelope, UnknownKeyError, "key", caplog)

    def test_signed_by_the_key_for_bundles(self, fleet: Any, device: Any, caplog: Any) -> None:
        envelope = fleet.desired(6, fleet.bundle("2"), key=fleet.bundle_key)
        self._refused(device, envelope, UnknownKeyError, "key", caplog)

    def test_altered_after_signing(self, fleet: Any, device: Any, caplog: Any) -> None:
        made = fleet.bundle("2")
        good, other = (decode_envelope(fleet.desired(rev, made)) for rev in (6, 7))
        forged = encode_envelope(msgspec.structs.replace(good, payload=other.payload))
        self._refused(device, forged, BadSignatureError, "signature", caplog)

    def test_a_lower_revision(self, fleet: Any, device: Any, caplog: Any) -> None:
        self._refused(device, fleet.desired(4, fleet.bundle("2")), StaleRevisionError, "stale", caplog)

    def test_the_same_revision_with_another_content(self, fleet: Any, device: Any, caplog: Any) -> None:
        self._refused(device, fleet.desired(5, fleet.bundle("2")), StaleRevisionError, "stale", caplog)

    def test_another_device(self, fleet: Any, device: Any, caplog: Any) -> None:
        envelope = fleet.desired(6, fleet.bundle("2"), device="pump-2")
        self._refused(device, envelope, TrustError, "address", caplog)

    def test_another_tenant(self, fleet: Any, device: Any, caplog: Any) -> None:
        self._refused(device, fleet.desired(6, fleet.bundle("2"), tenant="evil"), TrustError, "address", caplog)

    def test_expired(self, fleet: Any, device: Any, caplog: Any) -> None:
        envelope = fleet.desired(6, fleet.bundle("2"), not_after=time.time() - 1)
        self._refused(device, envelope, TrustError, "expired", caplog)

    @pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"payload": 1}', b"[" * 100_000])
    def test_no_envelope(self, device: Any, data: bytes, caplog: Any) -> None:
        self._refused(device, data, BadMessageError, "malformed", caplog)

    @pytest.mark.parametrize("slot", ["../main", "", "a/b", ".hidden"])
    def test_a_slot_that_would_leave_the_folder(self, fleet: Any, device: Any, slot: str, caplog: Any) -> None:
        made = fleet.bundle("2")
        envelope = fleet.desired(6, made, slots={slot: made.wanted})
        self._refused(device, envelope, BadMessageError, "malformed", caplog)

    def test_no_document_inside(self, fleet: Any, device: Any, caplog: Any) -> None:
        envelope = encode_envelope(sign(b'{"v": 1}', DESIRED_TYPE, [fleet.desired_key]))
        self._refused(device, envelope, BadMessageError, "malformed", caplog)


class TestDeclinedBundles:
    """What a good document wants and this device does not take ends in a reason, with the old bundle serving."""

    @pytest.fixture
    def device(self, fleet: Any, make_device: Callable[..., Any]) -> Any:
        device = make_device()
        device.installer.offer(fleet.desired(1, fleet.bundle("1")))
        device.wait("COMMITTED")
        return device

    def _ends(self, device: Any, envelope: bytes, state: str, reason: str, *, fetched: bool = False) -> None:
        active = device.installer.active_bundle("main")
        device.source.served.clear()
        device.installer.offer(envelope)
        device.wait(state, rev=2)
        assert device.reasons()[0] == reason
        assert device.events()[-1].reason == reason
        assert device.events()[-1].detail
        assert device.installer.active_bundle("main") == active
        assert active.is_file()
        assert bool(device.source.served) == fetched
        assert device.installer.report().revision == 2

    @pytest.mark.parametrize(
        ("needs", "reason"),
        [
            (Requirements(arch="wasm32"), "arch"),
            (Requirements(features=("no-such-feature",)), "isa"),
            (Requirements(memory_bytes=1 << 60), "memory"),
        ],
    )
    def test_hardware(self, fleet: Any, device: Any, needs: Requirements, reason: str) -> None:
        made = fleet.bundle("2", artifacts=(ArtifactNeed(format="native", abi=1, package=None, needs=needs),))
        self._ends(device, fleet.desired(2, made), "REJECTED", reason)

    @pytest.mark.parametrize(("kind", "abi", "reason"), [("quantum", 1, "engine"), ("native", 99, "abi")])
    def test_engine(self, fleet: Any, device: Any, kind: str, abi: int, reason: str) -> None:
        need = ArtifactNeed(format=kind, abi=abi, package=None, needs=Requirements())
        self._ends(device, fleet.desired(2, fleet.bundle("2", artifacts=(need,))), "REJECTED", reason)

    def test_more_than_the_disk_holds(self, fleet: Any, device: Any) -> None:
        made = fleet.bundle("2")
        full = msgspec.structs.replace(device.store.disk(), free=1000)
        device.store.disk = lambda: full
        self._ends(device, fleet.desired(2, made), "REJECTED", "disk")

    def test_below_the_rollback_floor(self, fleet: Any, device: Any) -> None:
        made = fleet.bundle("2", release=0)
        self._ends(device, fleet.desired(2, made, rollback_floor=1), "REJECTED", "floor")
        assert device.store.rollback_floor() == 1

    def test_the_floor_never_falls(self, fleet: Any, device: Any) -> None:
        device.store.accept(fleet.document(1, None, rollback_floor=7))
        self._ends(device, fleet.desired(2, fleet.bundle("2"), rollback_floor=0), "REJECTED", "floor")

    @pytest.mark.parametrize(
        "lie", [{"version": "3"}, {"name": "other"}, {"target": "aarch64"}, {"size": 5}, {"bundle": "0" * 64}]
    )
    def test_a_document_that_contradicts_the_bundle_s_signature(
        self, fleet: Any, device: Any, lie: dict[str, Any]
    ) -> None:
        self._ends(device, fleet.desired(2, _lying(fleet.bundle("2"), **lie)), "REJECTED", "signature")

    def test_a_bundle_signed_by_a_stranger(self, fleet: Any, device: Any) -> None:
        fleet.bundle_key, trusted = generate_key(), fleet.bundle_key
        made = fleet.bundle("2")
        fleet.bundle_key = trusted
        self._ends(device, fleet.desired(2, made), "REJECTED", "key")

    def test_another_file_than_was_signed(self, fleet: Any, device: Any) -> None:
        made = fleet.bundle("2")
        data = bytearray(made.path.read_bytes())
        data[len(data) // 2] ^= 1
        made.path.write_bytes(data)
        self._ends(device, fleet.desired(2, made), "FAILED", "digest", fetched=True)
        assert not device.store.slots.part_path(made.sha256).exists()
        assert not device.store.slots.map_path(made.sha256).exists()

    def test_wrong_golden_outputs(self, fleet: Any, device: Any) -> None:
        self._ends(device, fleet.desired(2, fleet.bundle("2", wrong=True)), "REJECTED", "golden", fetched=True)

    def test_too_slow(self, fleet: Any, device: Any) -> None:
        made = fleet.bundle("2", health=Health(p99_ms=0.0, soak_s=0.05))
        self._ends(device, fleet.desired(2, made), "REJECTED", "latency", fetched=True)

    def test_expired_while_it_waited(self, fleet: Any, device: Any) -> None:
        made = fleet.bundle("2", activate=Activate(after=time.time() + 0.6))
        envelope = fleet.desired(2, made, not_after=time.time() + 0.3)
        self._ends(device, envelope, "REJECTED", "expired", fetched=True)


class TestSoaking:
    """The new bundle serves, and is not trusted yet."""

    @pytest.fixture
    def device(self, fleet: Any, make_device: Callable[..., Any]) -> Any:
        device = make_device()
        device.installer.offer(fleet.desired(1, fleet.bundle("1")))
        device.wait("COMMITTED")
        return device

    def test_what_cannot_be_served_is_rolled_back(self, fleet: Any, device: Any) -> None:
        first, made = device.served[-1], fleet.bundle("2")
        device.refuse.add(made.sha256)
        device.installer.offer(fleet.desired(2, made))
        device.wait("ROLLED_BACK", rev=2)
        assert device.reasons()[0] == "load"
        assert device.store.slots.current("main") == first
        assert device.store.slots.previous("main") is None
        assert device.served == [first, first]

    def test_failed_health_rolls_back(self, fleet: Any, device: Any) -> None:
        first, made = device.served[-1], fleet.bundle("2", health=Health(soak_s=60))
        device.installer.offer(fleet.desired(2, made))
        device.wait("SOAKING", rev=2)
        device.installer.health_failed("main", "crashes", "3 in a minute", bundle="f" * 64)  # not this one
        device.installer.health_failed("main", "crashes", "3 in a minute", bundle=made.sha256)
        device.wait("ROLLED_BACK", rev=2)
        assert device.reasons() == ("crashes", "3 in a minute")
        assert device.served == [first, made.sha256, first]

    def test_a_newer_offer_restores_the_first_before_it_goes_on(self, fleet: Any, device: Any) -> None:
        first = device.served[-1]
        second, third = fleet.bundle("2", health=Health(soak_s=60)), fleet.bundle("3")
        device.installer.offer(fleet.desired(2, second))
        device.wait("SOAKING", rev=2)
        device.installer.offer(fleet.desired(3, third))
        device.wait("COMMITTED", rev=3)
        assert device.served[-1] == third.sha256
        assert device.store.slots.previous("main") == first
        assert [e.to_state for e in device.events() if e.job == "j2"][-1] == "SUPERSEDED"

    def test_back_to_the_first_while_soaking(self, fleet: Any, device: Any) -> None:
        first = fleet.bundle("1")
        device.installer.offer(fleet.desired(2, fleet.bundle("2", health=Health(soak_s=60))))
        device.wait("SOAKING", rev=2)
        device.installer.offer(fleet.desired(3, first))
        device.wait("COMMITTED", rev=3)
        assert device.store.slots.current("main") == first.sha256
        assert device.reasons()[0] == "already-active"

    def test_the_same_bundle_in_another_job_soaks_again(self, fleet: Any, device: Any) -> None:
        second = fleet.bundle("2", health=Health(soak_s=60))
        device.installer.offer(fleet.desired(2, second))
        device.wait("SOAKING", rev=2)
        again = _lying(second, health=Health(soak_s=0))
        device.installer.offer(fleet.desired(3, again))
        device.wait("COMMITTED", rev=3)
        assert [e.to_state for e in device.events() if e.job == "j3"] == ["SOAKING", "COMMITTED"]
        assert device.store.slots.current("main") == second.sha256

    def test_a_committed_bundle_that_fails_later_gives_way_too(self, fleet: Any, device: Any) -> None:
        first, second = device.served[-1], fleet.bundle("2")
        device.installer.offer(fleet.desired(2, second))
        device.wait("COMMITTED", rev=2)
        device.installer.health_failed("main", "crashes")
        device.wait("ROLLED_BACK", rev=2)
        assert device.store.slots.current("main") == first

    def test_withdrawn_before_the_swap(self, fleet: Any, device: Any) -> None:
        first = device.served[-1]
        device.source.fail = True
        device.installer.offer(fleet.desired(2, fleet.bundle("2")))
        device.wait("FETCHING", rev=2)
        device.installer.offer(fleet.desired(3, None))
        device.wait("SUPERSEDED", rev=3)
        assert device.reasons()[0] == "withdrawn"
        assert device.store.slots.current("main") == first


def test_a_first_bundle_that_fails_leaves_an_empty_slot_and_says_so(
    fleet: Any, make_device: Callable[..., Any]
) -> None:
    device, made = make_device(), fleet.bundle("1", health=Health(soak_s=60))
    device.installer.offer(fleet.desired(1, made))
    device.wait("SOAKING")
    device.installer.health_failed("main", "crashes")
    device.wait("ROLLED_BACK")
    assert "the slot is empty" in device.reasons()[1]
    assert device.installer.active_bundle("main") is None
    assert device.served == [made.sha256, None]
    assert device.installer.report().slots["main"].active is None


def test_a_fleet_that_is_away_is_waited_for(fleet: Any, make_device: Callable[..., Any]) -> None:
    device = make_device()
    device.source.fail = True
    device.installer.offer(fleet.desired(1, fleet.bundle("1")))
    device.wait("FETCHING")
    time.sleep(0.1)
    assert device.state() == "FETCHING"
    device.source.fail = False
    device.installer.nudge()
    device.wait("COMMITTED", timeout_s=5)


def test_two_slots_go_their_own_ways(fleet: Any, make_device: Callable[..., Any]) -> None:
    device, good, bad = make_device(), fleet.bundle("1"), fleet.bundle("2", wrong=True)
    device.installer.offer(fleet.desired(1, good, slots={"main": good.wanted, "second": bad.wanted}))
    device.wait("COMMITTED")
    end = time.monotonic() + 10
    while device.installer.report().slots["second"].state != "REJECTED" and time.monotonic() < end:
        time.sleep(0.01)
    slots = device.installer.report().slots
    assert (slots["main"].state, slots["second"].state) == ("COMMITTED", "REJECTED")
    assert slots["second"].active is None


class TestRestarts:
    """What a process that was not ended in an orderly way leaves behind."""

    def _interrupt_soak(self, fleet: Any, make_device: Callable[..., Any]) -> tuple[str, str]:
        first, second = fleet.bundle("1"), fleet.bundle("2", health=Health(soak_s=0.5))
        device = make_device()
        device.installer.offer(fleet.desired(1, first))
        device.wait("COMMITTED")
        device.installer.offer(fleet.desired(2, second))
        device.wait("SOAKING", rev=2)
        self._crash(device)
        return first.sha256, second.sha256

    def _crash(self, device: Any) -> None:
        """End without `end_boot`, as a killed process does."""
        device.store.end_boot = lambda: None
        device.close()

    def test_one_unconfirmed_boot_is_forgiven(self, fleet: Any, make_device: Callable[..., Any]) -> None:
        _, second = self._interrupt_soak(fleet, make_device)
        device = make_device()
        assert device.served == [second]
        device.wait("COMMITTED", rev=2)

    def test_two_roll_back_before_anything_is_served(self, fleet: Any, make_device: Callable[..., Any]) -> None:
        first, _ = self._interrupt_soak(fleet, make_device)
        self._crash(make_device())
        device = make_device()
        assert device.served == [first]
        assert device.state() == "ROLLED_BACK"
        assert device.reasons()[0] == "unconfirmed"

    def test_orderly_restarts_do_not_count(self, fleet: Any, make_device: Callable[..., Any]) -> None:
        _, second = self._interrupt_soak(fleet, make_device)
        for _ in range(3):
            make_device().close()
        device = make_device()
        device.wait("COMMITTED", rev=2)
        assert device.served == [second]

    def test_an_active_bundle_that_no_longer_loads_gives_way(self, fleet: Any, make_device: Callable[..., Any]) -> None:
        first, second = fleet.bundle("1"), fleet.bundle("2")
        device = make_device()
        for rev, made in ((1, first), (2, second)):
            device.installer.offer(fleet.desired(rev, made))
            device.wait("COMMITTED", rev=rev)
        device.close()
        damaged = device.installer.active_bundle("main")
        damaged.write_bytes(damaged.read_bytes()[:-100])
        after = make_device()
        assert after.served == [first.sha256]
        assert after.state() == "ROLLED_BACK"
        assert after.reasons()[0] == "load"

    def test_a_damaged_journal_is_set_aside_and_the_slot_serves_on(
        self, fleet: Any, make_device: Callable[..., Any], tmp_path: Path
    ) -> None:
        device, first = make_device(), fleet.bundle("1")
        device.installer.offer(fleet.desired(1, first))
        device.wait("COMMITTED")
        device.close()
        (tmp_path / "state" / "device.db").write_bytes(b"not a database, but long enough to be read as one" * 40)
        for suffix in ("-wal", "-shm"):
            (tmp_path / "state" / f"device.db{suffix}").unlink(missing_ok=True)
        after = make_device()
        assert after.served == [first.sha256]
        after.installer.offer(fleet.desired(2, first))
        after.wait("COMMITTED", rev=2)
        assert (tmp_path / "state" / "device.db.damaged").exists()

    def test_a_document_accepted_just_before_the_end_is_taken_up(
        self, fleet: Any, make_device: Callable[..., Any]
    ) -> None:
        made = fleet.bundle("1")
        device = make_device(resume=False)
        device.store.accept(fleet.document(1, made))
        device.close()
        after = make_device()
        after.wait("COMMITTED", rev=1)
        assert after.served == [made.sha256]
