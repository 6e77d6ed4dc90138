"""Who calls the API, and what they may do.

Bearer secrets of 256 random bits; the database holds only their SHA-256, which is enough for secrets that nobody
chose. A `Principal` carries roles, and every route names the roles that it takes, so finer roles or another proof of
identity (a client certificate) change `identify` and the table of roles, not the routes.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastapi import Depends, HTTPException, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from outrider.fleet.db import ApiKeyRow, DeviceRow
from outrider.fleet.state import state_of
from outrider.runtime.durable import write_file

SECRET_BYTES = 32
Role = Literal["operator", "device"]
ADMIN = "admin"


@dataclass(frozen=True)
class Principal:
    """An authenticated caller: an API key by its label, or a device by its id."""

    kind: Literal["key", "device"]
    name: str
    roles: frozenset[Role]

    @property
    def actor(self) -> str:
        """How the audit log names the caller."""
        return f"{self.kind}:{self.name}"


def new_secret(prefix: str) -> str:
    """A fresh secret; the prefix tells people and scanners what it is (`ork` API key, `ord` device, `ort` token)."""
    return f"{prefix}_{secrets.token_urlsafe(SECRET_BYTES)}"


def hash_secret(secret: str) -> str:
    """What the database keeps of a secret: its SHA-256 in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_key(session: Session, label: str, *, now: float) -> str:
    """Make an API key; returns it, for the only time."""
    key = new_secret("ork")
    session.add(ApiKeyRow(hash=hash_secret(key), label=label, created=now))
    session.flush()
    return key


def has_keys(session: Session) -> bool:
    """Whether any API key exists."""
    return session.scalars(select(ApiKeyRow.hash).limit(1)).first() is not None


def write_key_file(path: Path, key: str) -> None:
    """Keep a key for commands on this machine: mode 0600 from the first moment on, whole or not at all."""
    write_file(path, f"{key}\n".encode("ascii"), mode=0o600)


def identify(session: Session, secret: str) -> Principal | None:
    """Whose secret this is, or None."""
    digest = hash_secret(secret)
    key = session.get(ApiKeyRow, digest)
    if key is not None:
        return Principal(kind="key", name=key.label, roles=frozenset({"operator"}))
    device = session.scalars(select(DeviceRow.id).where(DeviceRow.secret_hash == digest)).first()
    if device is not None:
        return Principal(kind="device", name=device, roles=frozenset({"device"}))
    return None


def require(*roles: Role) -> Callable[[Request], Principal]:
    """A dependency that lets callers with one of the roles pass: 401 without identity, 403 without the role."""

    def check(request: Request) -> Principal:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise HTTPException(401, "an API key is needed", headers={"WWW-Authenticate": "Bearer"})
        with state_of(request).database.read() as session:
            principal = identify(session, secret.strip())
        if principal is None:
            raise HTTPException(401, "the API key is not known", headers={"WWW-Authenticate": "Bearer"})
        if principal.roles.isdisjoint(roles):
            raise HTTPException(403, f"this takes the role {' or '.join(roles)}")
        return principal

    return check


require_operator = require("operator")
require_device_or_operator = require("device", "operator")

OPERATOR = Depends(require_operator)
DEVICE_OR_OPERATOR = Depends(require_device_or_operator)
