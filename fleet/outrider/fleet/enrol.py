"""Enrolment: a one-time token becomes a device, its secrets, and the keys it pins."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
from sqlalchemy.orm import Session

from outrider.fleet import audit
from outrider.fleet.auth import hash_secret, new_secret
from outrider.fleet.db import DeviceRow, EnrolmentTokenRow
from outrider.fleet.settings import WILDCARD_HOSTS
from outrider.fleet.state import FleetState
from outrider.runtime.api_client.types import Enrolment, EnrolRequest, TokenInfo, TokenRequest
from outrider.runtime.errors import BadMessageError, OutriderError, TrustError
from outrider.runtime.messages import Address
from outrider.runtime.trust import BUNDLE_TYPE, DESIRED_TYPE, TrustStore

# Tests of all devices together are kept under this name, beside those of each device.
RESERVED_NAMES = frozenset({"fleet"})
_AGAIN = "make a new one with 'outrider fleet token create'"


def create_token(state: FleetState, request: TokenRequest, *, actor: str) -> TokenInfo:
    """Make a one-time token. Only its SHA-256 is kept."""
    token, now = new_secret("ort"), state.now()
    expires = now + request.ttl_s
    with state.database.session() as session:
        session.add(EnrolmentTokenRow(hash=hash_secret(token), group=request.group, created=now, expires=expires))
        audit.record(
            session, actor=actor, action="token.create", subject=request.group, detail={"expires": expires}, now=now
        )
    return TokenInfo(token=token, group=request.group, expires=expires)


@dataclass(frozen=True)
class _Secrets:
    api: str
    mqtt: str


def enrol(state: FleetState, request: EnrolRequest, *, api_url: str) -> Enrolment:
    """Turn a token into a device. `api_url` is how it reached the API just now.

    All or nothing: where the broker cannot take the device, the token stays unused. Raises TrustError for a token
    that is unknown, used or expired; BadMessageError for a name that cannot be one.
    """
    made = _Secrets(api=new_secret("ord"), mqtt=new_secret("orm"))
    tenant, now = state.settings.tenant, state.now()
    username: str | None = None
    with state.database.read() as session:  # strangers who guess must not take the write lock
        _usable_token(session, request.token, now=now)
    try:
        with state.database.session() as session:
            token = _usable_token(session, request.token, now=now, lock=True)
            audit.take_turns(session)
            device = _free_id(session, tenant, request.name)
            session.add(_row(device, tenant, token.group, request, made, now=now))
            token.used_at, token.device = now, device
            audit.record(
                session,
                actor=f"device:{device}",
                action="device.enrol",
                subject=device,
                detail={"group": token.group, "target": request.target.name},
                now=now,
            )
            username = f"{tenant}/{device}"
            state.broker.add_device(username, made.mqtt)
    except BaseException:
        if username is not None:
            with contextlib.suppress(OutriderError):
                state.broker.remove_device(username)
        raise
    state.manager.wake()
    return Enrolment(
        tenant=tenant,
        device=device,
        secret=made.api,
        mqtt_host=_broker_host(state, api_url),
        mqtt_port=state.broker.port,
        mqtt_username=username,
        mqtt_password=made.mqtt,
        api_url=state.settings.public_url or api_url,
        trust=_pins(state),
    )


def _usable_token(session: Session, token: str, *, now: float, lock: bool = False) -> EnrolmentTokenRow:
    row = session.get(EnrolmentTokenRow, hash_secret(token), with_for_update=lock)
    if row is None:
        raise TrustError("the enrolment token is not known", hint=_AGAIN)
    if row.used_at is not None:
        raise TrustError("the enrolment token was used already", hint=_AGAIN)
    if row.expires <= now:
        raise TrustError("the enrolment token has expired", hint=_AGAIN)
    return row


def _free_id(session: Session, tenant: str, name: str) -> str:
    """The asked name where it is free and not reserved, with a random end where it is not, or a random one."""
    if name:
        Address(tenant=tenant, device=name)  # raises BadMessageError for what cannot be part of a topic
        if name not in RESERVED_NAMES and session.get(DeviceRow, name) is None:
            return name
        if len(name) > 55:
            raise BadMessageError(f"the name {name!r} is taken, and too long to be made different")
    return f"{name or 'device'}-{secrets.token_hex(4)}"


def _row(device: str, tenant: str, group: str, request: EnrolRequest, made: _Secrets, *, now: float) -> DeviceRow:
    return DeviceRow(
        id=device,
        tenant=tenant,
        name=request.name or device,
        group=group,
        secret_hash=hash_secret(made.api),
        target=msgspec.to_builtins(request.target),
        created=now,
        online=False,
        revision_desired=0,
        revision_reported=0,
    )


def _broker_host(state: FleetState, api_url: str) -> str:
    """Where a device finds the broker: a broker on every interface is found where the API was."""
    if state.broker.host in WILDCARD_HOSTS:
        return urlsplit(api_url).hostname or state.broker.host
    return state.broker.host


def _pins(state: FleetState) -> dict[str, tuple[str, ...]]:
    store = TrustStore.load(state.settings.trust_dir)
    return {
        "desired": tuple(key.pem() for key in store.keys_for(DESIRED_TYPE)),
        "bundle": tuple(key.pem() for key in store.keys_for(BUNDLE_TYPE)),
    }
