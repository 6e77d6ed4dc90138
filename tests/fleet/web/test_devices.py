"""Enrolment, and devices seen and resolved by an operator."""

from __future__ import annotations

import re
from itertools import count
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from outrider.fleet.db import DeviceBootRow, DeviceRow
from outrider.fleet.enrol import RESERVED_NAMES
from outrider.fleet.manager.drift import FLEET
from outrider.fleet.manager.identity import PresenceBook
from outrider.runtime.api_client import EnrolRequest, FleetClient
from outrider.runtime.errors import BadMessageError, ConflictError, NotFoundError, TrustError, UnavailableError
from outrider.runtime.messages import Presence
from outrider.runtime.target import Target
from outrider.runtime.trust import BUNDLE_TYPE, DESIRED_TYPE, TrustStore

HOST = Target(name="host", arch="x86_64", triple="x86_64-linux-gnu", features=("avx2",))


def _ask(web: Any, token: str, name: str = "till-7") -> Any:
    return FleetClient(web.url).enrol(EnrolRequest(token=token, name=name, target=HOST))


def test_a_token_becomes_a_device(web: Any) -> None:
    enrolment = _ask(web, web.client.create_enrolment_token("tills"))
    assert (enrolment.tenant, enrolment.device) == ("default", "till-7")
    assert web.broker.devices == {"default/till-7": enrolment.mqtt_password}
    assert (enrolment.mqtt_host, enrolment.mqtt_port) == ("127.0.0.1", 1883)
    assert enrolment.mqtt_username == "default/till-7"
    assert enrolment.api_url == web.url
    store = TrustStore.from_pems(enrolment.trust)
    assert [key.keyid for key in store.keys_for(BUNDLE_TYPE)] == [web.publisher.public.keyid]
    assert len(store.keys_for(DESIRED_TYPE)) == 1
    info = web.client.device("till-7")
    assert (info.group, info.target, info.online, info.active, info.flagged) == ("tills", HOST, False, None, None)
    assert web.manager.woken == 1
    assert [entry.action for entry in web.client.audit()][-2:] == ["token.create", "device.enrol"]


def test_a_token_is_good_once(web: Any) -> None:
    token = web.client.create_enrolment_token()
    _ask(web, token)
    with pytest.raises(TrustError, match="used already"):
        _ask(web, token)
    assert len(web.client.devices()) == 1


def test_a_token_expires(web: Any) -> None:
    token = web.client.create_enrolment_token(ttl_s=10)
    web.clock.at += 10
    with pytest.raises(TrustError, match="expired"):
        _ask(web, token)


@pytest.mark.parametrize("token", ["", "ort_wrong"])
def test_an_unknown_token(web: Any, token: str) -> None:
    with pytest.raises(TrustError, match="not known"):
        _ask(web, token)


def test_a_taken_name_gets_an_end_of_its_own(web: Any) -> None:
    first, second = web.enrol(), web.enrol()
    assert first.device == "till-7"
    assert second.device.startswith("till-7-")
    assert {device.name for device in web.client.devices()} == {"till-7"}
    assert first.secret != second.secret


def test_no_device_takes_the_name_under_which_all_are_tested_together(web: Any) -> None:
    assert FLEET in RESERVED_NAMES
    assert re.fullmatch("fleet-[0-9a-f]{8}", web.enrol(FLEET).device)


def test_no_name_gets_a_random_one(web: Any) -> None:
    assert web.enrol("").device.startswith("device-")


@pytest.mark.parametrize("name", ["a/b", "+", "#", "-x", "a b", "x" * 65])
def test_names_that_could_reach_other_topics_are_refused(web: Any, name: str) -> None:
    token = web.client.create_enrolment_token()
    with pytest.raises(BadMessageError):
        _ask(web, token, name)
    _ask(web, token, "good")


def test_while_the_broker_is_away_the_token_stays_unused(web: Any) -> None:
    token = web.client.create_enrolment_token()
    web.broker.away = True
    with pytest.raises(UnavailableError):
        _ask(web, token)
    assert web.client.devices() == []
    web.broker.away = False
    assert _ask(web, token).device == "till-7"


def test_a_broker_on_every_interface_is_found_where_the_api_is(web: Any) -> None:
    web.broker.host = "0.0.0.0"
    assert web.enrol().mqtt_host == "127.0.0.1"


def test_devices_by_group(web: Any) -> None:
    web.enrol("a", "one")
    web.enrol("b", "two")
    assert [device.id for device in web.client.devices()] == ["a", "b"]
    assert [device.id for device in web.client.devices(group="two")] == ["b"]
    with pytest.raises(NotFoundError):
        web.client.device("c")


def test_a_device_shows_what_it_runs_and_reports(web: Any) -> None:
    bundle, device = web.published(), web.enrol().device
    reported = {
        "v": 1,
        "boot_id": "b",
        "seq": 1,
        "at": 2.0,
        "revision": 1,
        "slots": {},
        "disk": {"total": 2, "free": 1},
        "runtime": "0.1.0",
        "target": msgspec.to_builtins(HOST),
    }
    with web.state.database.session() as session:
        row = session.get_one(DeviceRow, device)
        row.active_bundle, row.reported = bundle.sha256, reported
    info = web.client.device(device)
    assert (info.active.name, info.active.version, info.active.sha256) == ("fraud", "1", bundle.sha256)
    assert info.reported.disk.free == 1


@pytest.mark.parametrize("online", [True, False])
def test_resolving_a_flagged_device(web: Any, online: bool) -> None:
    device = web.enrol().device
    with pytest.raises(ConflictError, match="not flagged"):
        web.client.resolve_device(device)
    with web.state.database.session() as session:
        row = session.get_one(DeviceRow, device)
        row.flagged, row.boot_id, row.online = "two machines use this identity", "new", online
        for boot in ("old", "new"):
            session.add(DeviceBootRow(device=device, boot_id=boot, first_seen=1.0, superseded=boot == "old"))
    before = web.manager.woken
    assert web.client.resolve_device(device, "the clone was unplugged").flagged is None
    assert web.manager.woken == before + 1
    with web.state.database.read() as session:
        boots = {row.boot_id: row.superseded for row in session.scalars(select(DeviceBootRow))}
        assert session.get_one(DeviceRow, device).boot_id == ("new" if online else None)
    assert boots == ({"new": False} if online else {})  # the other one may be the true device
    assert web.client.audit()[-1].detail == {
        "flagged": "two machines use this identity",
        "reason": "the clone was unplugged",
    }
    with pytest.raises(NotFoundError):
        web.client.resolve_device("none")


@pytest.mark.parametrize("kept", ["first", "second"])
def test_after_the_decision_either_machine_may_be_the_device(web: Any, kept: str) -> None:
    device, book, times = web.enrol().device, PresenceBook(), count(1)

    def say(boot: str, session: str, online: bool = True) -> str | None:
        presence = Presence(v=1, boot_id=boot, session=session, online=online, at=float(next(times)))
        with web.state.database.session() as transaction:
            row = transaction.get_one(DeviceRow, device)
            book.apply(transaction, row, presence, again=False, now=presence.at)
            return row.flagged

    flagged = [
        say(boot, session) for boot, session in (("first", "1"), ("second", "2"), ("first", "3"), ("second", "4"))
    ]
    assert flagged[-1] == "duplicate identity"
    say("second", "4", online=False)
    web.client.resolve_device(device)
    other = "second" if kept == "first" else "first"
    assert say(kept, "5") is None
    assert say(other, "6") is None  # it was not stopped after all, which shows when the kept one returns
    assert say(kept, "7") == "duplicate identity"
