"""What messages change in the database, whatever order and number they come in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from outrider.fleet.db import (
    AuditRow,
    Database,
    DeploymentRow,
    DeviceBootRow,
    DeviceRow,
    EventRow,
    ReleaseRow,
    RolloutRow,
)
from outrider.fleet.manager.apply import Known, apply_event, apply_reported
from outrider.fleet.manager.identity import PresenceBook
from outrider.fleet.manager.ingest import BATCH, Ingest
from outrider.fleet.manager.link import Incoming
from outrider.fleet.views import device_infos
from outrider.runtime.errors import UnavailableError
from outrider.runtime.messages import (
    ArtifactTrial,
    BundleRef,
    Disk,
    Event,
    Presence,
    Reported,
    SlotReport,
    State,
    decode,
    encode,
)
from outrider.runtime.messages.payloads import MAX_SLOTS
from outrider.runtime.target import Target

HOST = Target(name="host", arch="x86_64", triple="x86_64-linux-gnu")
BUNDLE = "a" * 64
STEPS: tuple[State, ...] = ("OFFERED", "ADMITTED", "FETCHING", "VERIFIED", "STAGED", "PROBING", "ARMED", "SOAKING")
_count = iter(range(10**9))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    folder: Path = tmp_path_factory.mktemp("apply")
    database = Database(f"sqlite:///{folder / 'fleet.db'}")
    database.migrate()
    with database.session() as session:
        session.add(ReleaseRow(number=1, name="fraud", version="1", created=0.0))
        session.flush()
        session.add(
            RolloutRow(id=1, release=1, group="g", canary=1, state="RUNNING", settings={}, seed="s", created=0.0)
        )
    yield database
    database.close()


def new_device(database: Database, *, attempt: int = 1) -> str:
    name = f"d{next(_count)}"
    with database.session() as session:
        session.add(
            DeviceRow(
                id=name,
                tenant="acme",
                name=name,
                group="g",
                secret_hash=name.rjust(64, "0"),
                target=msgspec.to_builtins(HOST),
                created=0.0,
            )
        )
        session.flush()
        session.add(
            DeploymentRow(
                rollout=1,
                device=name,
                bundle=BUNDLE,
                wave=0,
                attempt=attempt,
                state="PENDING",
                created=0.0,
                updated=0.0,
            )
        )
    return name


def step(seq: int, state: State, *, attempt: int = 1, boot: str = "b", job: str = "1") -> Event:
    return Event(
        v=1,
        boot_id=boot,
        seq=seq,
        at=1.0,
        slot="main",
        job=job,
        attempt=attempt,
        from_state=None,
        to_state=state,
        bundle=BUNDLE,
    )


def take(database: Database, device: str, *messages: Event | Reported) -> None:
    """Apply messages in one transaction."""
    with database.session() as session, session.no_autoflush:
        known = Known(session, [(device, message) for message in messages])
        for message in messages:
            if isinstance(message, Event):
                apply_event(known, known.devices[device], message, now=5.0)
            else:
                apply_reported(known, known.devices[device], message, now=5.0)


def state_of(database: Database, device: str) -> str:
    with database.read() as session:
        return session.scalars(select(DeploymentRow.state).filter_by(device=device)).one()


@settings(deadline=None, max_examples=40)
@given(verdict=st.sampled_from(["COMMITTED", "ROLLED_BACK", "FAILED", "REJECTED"]), seed=st.integers(0, 2**32))
def test_duplicates_and_reordering_end_in_the_same_state(shared: Database, verdict: State, seed: int) -> None:
    rng = random.Random(seed)
    device = new_device(shared)
    sent = [step(i, state) for i, state in enumerate([*STEPS, verdict])]
    received = sent + [rng.choice(sent) for _ in range(2)]
    for i in range(len(received)):  # neighbours swap places, 20 % of the time
        if rng.random() < 0.2 and i:
            received[i - 1], received[i] = received[i], received[i - 1]
    half = rng.randrange(len(received))
    for batch in (received[:half], received[half:]):
        take(shared, device, *batch)
    assert state_of(shared, device) == verdict
    with shared.read() as session:
        assert len(session.scalars(select(EventRow.id).filter_by(device=device)).all()) == len(sent)
        ends = session.scalars(select(AuditRow).filter_by(subject=device)).all()
    assert len(ends) == 1


def test_events_of_another_attempt_or_rollout_move_nothing(shared: Database) -> None:
    device = new_device(shared, attempt=2)
    others = [step(seq, "COMMITTED", attempt=2, job=job) for seq, job in enumerate(("", "x", "2", "9" * 30, "²"), 2)]
    take(shared, device, step(1, "COMMITTED", attempt=1), *others)
    assert state_of(shared, device) == "PENDING"


def reported(seq: int, state: State, *, boot: str = "b", revision: int = 1) -> Reported:
    active = BundleRef(sha256=BUNDLE, name="fraud", version="1") if state == "COMMITTED" else None
    return Reported(
        v=1,
        boot_id=boot,
        seq=seq,
        at=1.0,
        revision=revision,
        slots={"main": SlotReport(active=active, state=state, job="1", attempt=1)},
        disk=Disk(total=1, free=1),
        runtime="1",
        target=HOST,
    )


def test_reported_state_makes_up_for_lost_events_and_old_ones_change_nothing(shared: Database) -> None:
    device = new_device(shared)
    take(shared, device, reported(5, "COMMITTED", revision=3), reported(4, "FETCHING", revision=2), step(3, "SOAKING"))
    assert state_of(shared, device) == "COMMITTED"
    with shared.read() as session:
        row = session.get_one(DeviceRow, device)
        assert (row.revision_reported, row.active_bundle) == (3, BUNDLE)
    with shared.session() as session:
        session.add(DeviceBootRow(device=device, boot_id="old", first_seen=0.0, superseded=True))
    take(shared, device, reported(9, "FAILED", boot="old", revision=9))
    with shared.read() as session:
        assert session.get_one(DeviceRow, device).revision_reported == 3


def test_an_event_that_comes_after_the_reported_state_says_why(shared: Database) -> None:
    device = new_device(shared)
    why = msgspec.structs.replace(step(1, "FAILED"), reason="digest", detail="other bytes")
    take(shared, device, reported(1, "FAILED"), why, step(2, "SOAKING"))
    with shared.read() as session:
        row = session.scalars(select(DeploymentRow).filter_by(device=device)).one()
    assert (row.state, row.reason, row.detail) == ("FAILED", "digest", "other bytes")


def test_what_a_device_found_of_each_artifact_is_kept(shared: Database) -> None:
    device = new_device(shared)
    found = (
        ArtifactTrial(candidate="int8", passed=False, reason="golden", detail="y is out of tolerance"),
        ArtifactTrial(candidate="fp32", passed=True, kept=True, p50_ms=1.5, p99_ms=2.0, rss_bytes=1 << 20),
    )
    probed = decode(encode(msgspec.structs.replace(step(7, "ARMED"), trials=found)), Event)
    take(shared, device, step(8, "SOAKING"), probed, step(9, "COMMITTED"))
    with shared.read() as session:
        row = session.scalars(select(DeploymentRow).filter_by(device=device)).one()
    assert row.state == "COMMITTED"
    assert msgspec.convert(row.trials, tuple[ArtifactTrial, ...]) == found
    with shared.session() as session:
        session.add(DeviceBootRow(device=device, boot_id="b", first_seen=0.0))
    take(shared, device, reported(10, "COMMITTED"))
    with shared.read() as session:
        (info,) = device_infos(session, [session.get_one(DeviceRow, device)], trials=True)
        (brief,) = device_infos(session, [session.get_one(DeviceRow, device)])
    assert (info.trials, brief.trials) == (found, ())


def test_trials_of_another_attempt_are_not_kept(shared: Database) -> None:
    device = new_device(shared, attempt=2)
    found = (ArtifactTrial(candidate="fp32", passed=True, kept=True, p50_ms=1.5),)
    take(shared, device, msgspec.structs.replace(step(1, "ARMED", attempt=1), trials=found))
    with shared.read() as session:
        assert session.scalars(select(DeploymentRow.trials).filter_by(device=device)).one() is None


# Presence -------------------------------------------------------------------------------------------------------


def hello(boot: str, session: str, *, at: float = 100.0, online: bool = True) -> Presence:
    return Presence(v=1, boot_id=boot, session=session, online=online, at=at)


class Book:
    """A presence book over one device."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.device = new_device(database)
        self.book = PresenceBook()

    def say(self, presence: Presence, *, now: float = 50.0, again: bool = False) -> DeviceRow:
        with self.database.session() as session:
            row = session.get_one(DeviceRow, self.device)
            self.book.apply(session, row, presence, again=again, now=now)
            return row


def test_presence_follows_the_current_session(shared: Database) -> None:
    book = Book(shared)
    assert book.say(hello("a", "1")).online
    assert book.say(hello("a", "2")).online
    assert book.say(hello("a", "1", online=False)).online
    assert not book.say(hello("a", "2", online=False)).online
    row = book.say(hello("b", "1"))
    assert (row.online, row.boot_id, row.flagged) == (True, "b", None)
    assert book.say(hello("a", "1", online=False)).online


def test_a_boot_that_comes_back_is_a_clone(shared: Database) -> None:
    book = Book(shared)
    book.say(hello("a", "1"))
    book.say(hello("b", "2"))
    row = book.say(hello("a", "3"))
    assert row.flagged == "duplicate identity"
    assert row.boot_id == "a"
    assert book.say(hello("b", "4")).boot_id == "b"  # whoever was there last, until an operator decides
    with shared.read() as session:
        [entry] = session.scalars(select(AuditRow).filter_by(action="device.flag", subject=book.device)).all()
    assert sorted(entry.detail["boots"]) == ["a", "b"]


def test_a_message_delivered_again_is_no_clone(shared: Database) -> None:
    book = Book(shared)
    first, second = hello("a", "1"), hello("b", "2")
    for presence in (first, second, first, second):
        book.say(presence)
    assert book.say(first, again=True).flagged is None
    # After a restart nothing is remembered: the broker's mark, or the time in the message, tell.
    book.book = PresenceBook()
    assert book.say(first, again=True).flagged is None
    early = Book(shared)
    early.say(hello("a", "1", at=10.0), now=20.0)
    early.say(hello("b", "2", at=30.0), now=40.0)
    early.book = PresenceBook()
    assert early.say(hello("a", "1", at=10.0)).flagged is None
    assert early.say(hello("b", "2", at=30.0)).boot_id == "b"


def test_a_clone_with_a_clock_in_the_past_is_found_when_it_returns_again(shared: Database) -> None:
    book = Book(shared)
    book.say(hello("a", "1", at=0.0), now=1000.0)
    book.say(hello("b", "2", at=0.0), now=1001.0)
    assert book.say(hello("a", "3", at=1.0), now=1002.0).flagged is None
    book.say(hello("b", "4", at=1.0), now=1003.0)
    assert book.say(hello("a", "5", at=2.0), now=1004.0).flagged == "duplicate identity"


# The ingest thread ------------------------------------------------------------------------------------------------


def test_one_bad_message_does_not_hold_up_the_others(shared: Database) -> None:
    device, acked, changes = new_device(shared), [], []
    ingest = Ingest(shared, ack=acked.append, on_block=lambda *_: None, on_change=lambda: changes.append(1))
    good = encode(step(1, "OFFERED"))
    topics = [
        (f"or1/acme/{device}/up/evt", b"{"),
        (f"or1/acme/{device}/up/nonsense", good),
        (f"or1/acme/{device}/dn/evt", good),
        ("elsewhere", good),
        ("or1/acme/nobody/up/evt", good),
        (f"or1/other/{device}/up/evt", good),
        (f"or1/acme/{device}/up/evt", good),
    ]
    ingest.start()
    for mid, (topic, payload) in enumerate(topics):
        ingest.put(Incoming(1, mid, topic, payload, again=False))
    _until(lambda: len(acked) == len(topics))
    ingest.stop()
    assert state_of(shared, device) == "OFFERED"
    assert changes
    assert ingest.idle


def test_nothing_is_acknowledged_before_it_is_stored(shared: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outrider.fleet.manager.ingest.RETRY_S", 0.05)
    device, acked, failures = new_device(shared), [], iter([True, True])
    real = shared.session

    def session() -> object:
        if next(failures, False):
            raise UnavailableError("the database is away")
        return real()

    monkeypatch.setattr(shared, "session", session)
    ingest = Ingest(shared, ack=acked.append, on_block=lambda *_: None, on_change=lambda: None)
    ingest.start()
    ingest.put(Incoming(1, 1, f"or1/acme/{device}/up/evt", encode(step(1, "OFFERED")), again=False))
    _until(lambda: acked)
    ingest.stop()
    assert state_of(shared, device) == "OFFERED"


def test_a_device_that_reports_ever_so_many_slots_holds_up_no_other(
    shared: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs of a batch's messages become variables of one query, and a database takes only so many."""
    monkeypatch.setattr("outrider.fleet.manager.ingest.RETRY_S", 0.05)
    hostile, honest, acked = new_device(shared), new_device(shared), []
    ingest = Ingest(shared, ack=acked.append, on_block=lambda *_: None, on_change=lambda: None)
    for mid in range(30):
        jobs = range(mid * 9000, (mid + 1) * 9000)
        slots = {f"{job:x}": SlotReport(job=str(job + 10)) for job in jobs}
        message = msgspec.structs.replace(reported(mid, "COMMITTED"), slots=slots)
        ingest.put(Incoming(1, mid, f"or1/acme/{hostile}/up/reported", encode(message), again=False))
    ingest.put(Incoming(1, 99, f"or1/acme/{honest}/up/evt", encode(step(1, "OFFERED")), again=False))
    ingest.start()
    _until(lambda: len(acked) == 31)
    ingest.stop()
    assert state_of(shared, honest) == "OFFERED"
    assert BATCH * (MAX_SLOTS + 1) < 32_766  # SQLite's least limit on variables


def _until(condition: object) -> None:
    import time

    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)
