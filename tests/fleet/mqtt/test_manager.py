"""The manager against real brokers, with devices that are bare MQTT clients."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from outrider.fleet.db import AuditRow, DeviceBootRow, DeviceRow, EventRow, PredictionRow, WindowRow
from outrider.runtime.messages import BLOCK_BYTES, Block, BlockRequest, Event, Prediction, Predictions, Stat, decode

pytestmark = pytest.mark.system
Wait = Callable[..., Any]


def test_a_rollout_reaches_three_devices_the_canary_first(fleet: Any, wait: Wait) -> None:
    devices = [fleet.enrol(f"till-{i}").start() for i in range(3)]
    wait(lambda: all(fleet.device(f"till-{i}").online for i in range(3)), what="presence")
    bundle = fleet.publish("1")
    rollout = fleet.rollout("1", canary=1)
    wait(lambda: fleet.state(rollout) == "DONE", what="done")
    rows = fleet.deployments(rollout)
    assert sorted(row.wave for row in rows.values()) == [0, 1, 1]
    assert {row.state for row in rows.values()} == {"COMMITTED"}
    with fleet.database.read() as session:
        events = session.scalars(select(EventRow).order_by(EventRow.id)).all()
        actions = set(session.scalars(select(AuditRow.action)))
    canary = next(name for name, row in rows.items() if row.wave == 0)
    canary_done = next(e.id for e in events if e.device == canary and e.to_state == "COMMITTED")
    assert all(e.id > canary_done for e in events if e.device != canary)
    assert {"rollout.move", "deployment.commit", "manager.start"} <= actions
    for device in devices:
        [document] = [d for d in device.documents if d.slots]
        assert (document.rev, document.job, document.attempt) == (1, str(rollout), 1)
        assert document.slots["main"].bundle == bundle
        assert document.slots["main"].urls == (f"/v1/bundles/{bundle}/content",)
        row = fleet.device(device.address.device)
        assert (row.revision_desired, row.active_bundle) == (1, bundle)
    # A device that joins after DONE gets it too, and the rollout stays done.
    late = fleet.enrol("till-late").start()
    wait(lambda: late.documents, what="the late device's document")
    wait(lambda: fleet.deployments(rollout)["till-late"].state == "COMMITTED")
    assert fleet.state(rollout) == "DONE"


def test_a_bad_bundle_stops_at_the_canary_and_the_others_keep_what_they_have(fleet: Any, wait: Wait) -> None:
    devices = [fleet.enrol(f"till-{i}").start() for i in range(3)]
    good, bad = fleet.publish("1"), fleet.publish("2")
    first = fleet.rollout("1", canary=1)
    wait(lambda: fleet.state(first) == "DONE")
    for device in devices:
        device.verdict = "ROLLED_BACK"
    second = fleet.rollout("2", canary=1)
    wait(lambda: fleet.state(second) == "ABORTED", what="aborted")
    rows = fleet.deployments(second)
    assert len(rows) == 1
    exposed = [d for d in devices if any(doc.slots["main"].bundle == bad for doc in d.documents)]
    assert len(exposed) == 1
    # The canary's document names the good bundle again, with a higher revision.
    wait(lambda: exposed[0].documents[-1].slots["main"].bundle == good, what="the old document again")
    revisions = [doc.rev for doc in exposed[0].documents]
    assert revisions == sorted(revisions) == list(range(1, len(revisions) + 1))


def test_an_offline_device_is_pending_and_gets_it_when_it_comes(fleet: Any, wait: Wait) -> None:
    first, second = fleet.enrol("a").start(), fleet.enrol("b")
    wait(lambda: fleet.device("a").online)
    fleet.publish("1")
    rollout = fleet.rollout("1", canary=1)
    wait(lambda: fleet.deployments(rollout).get("a") and fleet.deployments(rollout)["a"].state == "COMMITTED")
    time.sleep(0.5)
    assert fleet.state(rollout) == "RUNNING"
    second.start()
    wait(lambda: fleet.state(rollout) == "DONE")
    assert first.documents[0].rev == second.documents[0].rev == 1


def test_the_will_sets_a_device_offline_and_one_of_an_old_session_does_not(fleet: Any, wait: Wait) -> None:
    device = fleet.enrol("a").start()
    wait(lambda: fleet.device("a").online)
    old_session = device.session
    device.stop()
    wait(lambda: not fleet.device("a").online, what="the will")
    device.start()
    wait(lambda: fleet.device("a").online)
    late_will = device._presence(online=False).replace(device.session.encode(), old_session.encode())
    device.send("presence", late_will).wait_for_publish(5)
    device.send("evt", b"not an event").wait_for_publish(5)
    time.sleep(0.5)
    assert fleet.device("a").online


def test_two_machines_with_one_identity_are_flagged_and_their_document_withheld(fleet: Any, wait: Wait) -> None:
    device = fleet.enrol("a").start()
    wait(lambda: fleet.device("a").online)
    fleet.publish("1")
    rollout = fleet.rollout("1", canary=1)
    wait(lambda: fleet.state(rollout) == "DONE")
    twin = fleet.twin("a").start()
    wait(lambda: fleet.device("a").flagged, what="the flag")
    assert fleet.device("a").flagged == "duplicate identity"
    with fleet.database.read() as session:
        boots = set(session.scalars(select(DeviceBootRow.boot_id).filter_by(device="a")))
        entry = session.scalars(select(AuditRow).filter_by(action="device.flag")).one()
    assert boots == {device.boot_id, twin.boot_id} == set(entry.detail["boots"])
    wait(lambda: device.cleared + twin.cleared, what="the cleared document")
    device.stop()
    twin.stop()
    fleet.publish("2")
    withheld = fleet.rollout("2", canary=1)
    time.sleep(0.5)
    assert fleet.deployments(withheld) == {}
    # An operator stops one machine and decides; then the document is published again.
    device.start()
    wait(lambda: fleet.device("a").boot_id == device.boot_id and fleet.device("a").online)
    with fleet.database.session() as session:
        session.get_one(DeviceRow, "a").flagged = None
    fleet.manager.wake()
    wait(lambda: fleet.state(withheld) == "DONE", what="rolled out after the decision")
    assert fleet.device("a").flagged is None


def test_restarts_of_one_machine_are_no_clone(fleet: Any, wait: Wait) -> None:
    for _ in range(3):
        device = fleet.twin("a") if fleet.devices else fleet.enrol("a")
        device.start()
        wait(lambda: fleet.device("a").boot_id == device.boot_id and fleet.device("a").online)  # noqa: B023
        device.stop()
    time.sleep(0.3)
    assert fleet.device("a").flagged is None


def test_messages_that_come_twice_count_once(fleet: Any, wait: Wait) -> None:
    device = fleet.enrol("a").start()
    bundle = fleet.publish("1")
    rollout = fleet.rollout("1", canary=1)
    wait(lambda: fleet.state(rollout) == "DONE")
    document = device.documents[0]
    seq = device.next_seq()
    stat = Stat(v=1, boot_id="b", seq=seq, slot="main", bundle=bundle, start=1.0, end=2.0, rows=3, window=b"x")
    late = Event(
        v=1, boot_id=device.boot_id, seq=1, at=0.0, slot="main", job=document.job, attempt=1, from_state=None,
        to_state="OFFERED", bundle=bundle,
    )  # fmt: skip
    predictions = Predictions(
        v=1, boot_id="b", seq=1, slot="main", bundle=bundle,
        predictions=(Prediction(id="p1", score_bin=3, prediction=1, at=1.0),),
    )  # fmt: skip
    with fleet.database.read() as session:
        before = len(session.scalars(select(EventRow.id)).all())
    for _ in range(3):
        device.send("stat", stat)
        device.send("evt", late)
        device.send("pred", predictions)
    device.send(
        "stat", Stat(v=1, boot_id="b", seq=99, slot="main", bundle=bundle, start=1.0, end=2.0, rows=3, window=b"x")
    )

    def last_window() -> bool:
        with fleet.database.read() as session:
            return session.scalars(select(WindowRow).filter_by(seq=99)).first() is not None

    wait(last_window)
    with fleet.database.read() as session:
        assert len(session.scalars(select(WindowRow.id)).all()) == 2
        assert len(session.scalars(select(PredictionRow.id)).all()) == 1
        assert len(session.scalars(select(EventRow.id)).all()) == before
    assert fleet.deployments(rollout)["a"].state == "COMMITTED"


def test_the_state_recovers_after_the_broker_is_killed(fleet: Any, wait: Wait) -> None:
    devices = [fleet.enrol(f"till-{i}").start() for i in range(2)]
    fleet.publish("1")
    first = fleet.rollout("1", canary=1)
    wait(lambda: fleet.state(first) == "DONE")
    os.kill(fleet.broker.pid, signal.SIGKILL)
    fleet.publish("2")
    second = fleet.rollout("2", canary=1)  # while the broker is away
    wait(lambda: fleet.broker.generation == 1)
    wait(lambda: fleet.state(second) == "DONE", timeout_s=30, what="the second rollout")
    for device in devices:
        revisions = [document.rev for document in device.documents]
        assert revisions == sorted(revisions), "a lower revision was published"
        assert device.documents[-1].job == str(second)

    # A device that connects afresh finds its document on the broker, whatever that had lost.
    twin = fleet.twin("till-0")
    twin.boot_id = devices[0].boot_id
    devices[0].stop()
    wait(lambda: not fleet.device("till-0").online)
    twin.start()
    wait(lambda: twin.documents, what="the retained document")
    assert twin.documents[-1].job == str(second)


def test_a_restarted_manager_publishes_no_lower_revision_and_loses_no_event(fleet: Any, wait: Wait) -> None:
    device = fleet.enrol("a").start()
    fleet.publish("1")
    rollout = fleet.rollout("1", canary=1)
    wait(lambda: fleet.state(rollout) == "DONE")
    fleet.manager.stop()
    document = device.documents[0]
    device.report(document, "ROLLED_BACK", "crash").to_state  # noqa: B018 - said while nobody listens
    time.sleep(0.3)
    fleet.restart_manager()
    wait(lambda: fleet.deployments(rollout)["a"].state == "ROLLED_BACK", what="the event that waited")
    assert [d.rev for d in device.documents] == sorted(d.rev for d in device.documents)


def test_blocks_come_over_mqtt_only_for_bundles_that_were_given(fleet: Any, wait: Wait) -> None:
    device = fleet.enrol("a").start()
    data = os.urandom(3 * BLOCK_BYTES + 1000)
    bundle, other = fleet.publish("1", data=data), fleet.publish("2")
    rollout = fleet.rollout("1", canary=1)
    wait(lambda: fleet.state(rollout) == "DONE")
    device.send("blk", BlockRequest(v=1, sha256=other, index=0, n=1))
    device.send("blk", BlockRequest(v=1, sha256=bundle, index=0, n=10))
    topic = device.address.down(f"blk/{bundle}")
    wait(lambda: sum(1 for name, _ in device.received if name == topic) == 4, what="four blocks")
    blocks = {block.index: block.data for block in (decode(p, Block) for name, p in device.received if name == topic)}
    assert b"".join(blocks[index] for index in range(4)) == data
    assert not [name for name, _ in device.received if other in name]


def test_a_device_without_a_bundle_for_its_target_is_reported_and_served_later(fleet: Any, wait: Wait) -> None:
    from outrider.runtime.target import Target

    pi = Target(name="armv7", arch="armv7", triple="armv7-linux-gnueabihf")
    fleet.enrol("a").start()
    fleet.enrol("pi", target=pi).start()
    fleet.publish("1")
    rollout = fleet.rollout("1", canary=1)
    wait(lambda: fleet.state(rollout) == "DONE")
    row = fleet.deployments(rollout)["pi"]
    assert (row.state, row.reason) == ("REJECTED", "no-bundle")
    assert "armv7" in row.detail
    fleet.publish("1", target="armv7", arch="armv7")
    fleet.manager.wake()
    wait(lambda: fleet.deployments(rollout)["pi"].state == "COMMITTED", what="the added bundle")


@pytest.mark.parametrize("kind", ["mosquitto"], indirect=True)  # iotcore has no access list
def test_a_forged_topic_is_refused(fleet: Any, wait: Wait) -> None:
    thief, victim = fleet.enrol("thief").start(), fleet.enrol("victim").start()
    wait(lambda: fleet.device("thief").online and fleet.device("victim").online)
    forged = victim._presence(online=False)
    thief.client.publish(victim.address.up("presence"), forged, 1).wait_for_publish(5)
    thief.client.publish("or1/_sys/epoch", b"x", 1, True).wait_for_publish(5)
    wait(lambda: thief.refused == [0x87, 0x87], what="Not authorized, twice")
    thief.client.subscribe([(victim.address.down("#"), 1), ("or1/+/+/up/#", 1), ("$share/mgr/or1/+/+/up/#", 1)])  # type: ignore[list-item]
    fleet.publish("1")
    rollout = fleet.rollout("1", canary=0)
    wait(lambda: fleet.state(rollout) == "DONE")
    assert fleet.device("victim").online
    assert not [topic for topic, _ in thief.received if "victim" in topic or "/up/" in topic]
    # A client with another's id but not its password gets nowhere, nor does it disturb that client.
    stranger = fleet.twin("victim", "guess")
    stranger.start()
    wait(lambda: stranger.refused)
    assert fleet.device("victim").online
    # A removed device is thrown out, and refused from then on.
    before = len(thief.refused)
    fleet.broker.remove_device("acme/thief")
    wait(lambda: len(thief.refused) > before, what="kicked and refused")


def test_devices_that_do_not_come_back_after_the_broker_was_lost_are_offline(
    fleet: Any, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that is killed takes the wills of its clients with it."""
    monkeypatch.setattr("outrider.fleet.manager.manager.RETURN_S", 3.0)
    stays, dies = fleet.enrol("stays").start(), fleet.enrol("dies").start()
    wait(lambda: fleet.device("stays").online and fleet.device("dies").online)
    os.kill(fleet.broker.pid, signal.SIGKILL)
    dies.stop()
    wait(lambda: not fleet.device("dies").online, what="offline")
    assert fleet.device("stays").online
    assert stays.session
    with fleet.database.read() as session:
        losses = session.scalars(select(AuditRow).filter_by(action="broker.lost")).all()
    assert losses
