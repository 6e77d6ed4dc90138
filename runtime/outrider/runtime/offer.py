"""Whether a desired document may be taken up, and whether what it wants is what was signed. No IO.

The broker is not trusted: a document counts only by its signature, address, revision and expiry, and a bundle only
where the document and the bundle's own signature agree.
"""

from __future__ import annotations

import re

import msgspec
from msgspec.structs import replace

from outrider.runtime.bundle.archive import MAX_BUNDLE_BYTES
from outrider.runtime.errors import (
    BadInputError,
    BadMessageError,
    BadSignatureError,
    OutriderError,
    StaleRevisionError,
    TrustError,
    UnknownKeyError,
    UnsignedError,
)
from outrider.runtime.messages import MAX_DESIRED_BYTES, Address, Desired, SlotDesired, decode
from outrider.runtime.messages.topics import NAME_PATTERN
from outrider.runtime.trust import DESIRED_TYPE, TrustStore, decode_envelope, verify
from outrider.runtime.trust.statements import verify_statement

_NAME = re.compile(NAME_PATTERN)
_CODES: dict[type[OutriderError], str] = {
    UnsignedError: "unsigned",
    UnknownKeyError: "key",
    BadSignatureError: "signature",
    BadMessageError: "malformed",
}


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A document that changes nothing.

    `code` is one of `unsigned`, `key`, `signature`, `malformed`, `address`, `stale`, `expired`.
    """

    code: str
    error: BadInputError


class Declined(msgspec.Struct, frozen=True, kw_only=True):
    """A slot's bundle that is not taken, as the fleet gets to read it."""

    reason: str
    detail: str


def examine(
    envelope: bytes, *, trust: TrustStore, address: Address, applied: Desired | None, wall: float
) -> Desired | Refused:
    """The document inside an envelope, once everything about it holds at the time `wall`.

    `applied` is the document accepted last. The same revision with the same content is accepted again.
    """
    try:
        desired = _open(envelope, trust)
    except (TrustError, BadMessageError) as e:
        return Refused(code=_CODES.get(type(e), "signature"), error=e)
    if (desired.tenant, desired.device) != (address.tenant, address.device):
        whose = f"{desired.tenant}/{desired.device}"
        return Refused(code="address", error=TrustError(f"the desired document is for {whose[:130]}, not this device"))
    if applied is not None and desired.rev <= applied.rev:
        return _repeated(desired, applied)
    if wall > desired.not_after:
        late = TrustError(
            f"revision {desired.rev} expired {wall - desired.not_after:.0f} s ago", hint="check the clock"
        )
        return Refused(code="expired", error=late)
    return desired


def check_slot(wanted: SlotDesired, *, floor: int, trust: TrustStore) -> Declined | None:
    """Why a slot's bundle must not be installed, or None. `floor` is the lowest release that may be.

    Reasons: `floor`, `size`, `unsigned`, `key`, `signature`, `malformed`.
    """
    if wanted.release < floor:
        return Declined(reason="floor", detail=f"release {wanted.release} is below the rollback floor {floor}")
    if wanted.size > MAX_BUNDLE_BYTES:
        return Declined(reason="size", detail=f"{wanted.size} bytes are over the limit of {MAX_BUNDLE_BYTES}")
    try:
        said = verify_statement(decode_envelope(wanted.signature.encode()), trust)
    except (TrustError, BadMessageError) as e:
        return Declined(reason=_CODES.get(type(e), "signature"), detail=f"the bundle's signature: {e}")
    for field, stated, desired in (
        ("SHA-256", said.sha256, wanted.bundle),
        ("size", said.size, wanted.size),
        ("name", said.name, wanted.name),
        ("version", said.version, wanted.version),
        ("target", said.target, wanted.target),
    ):
        if stated != desired:
            detail = f"the bundle was signed with the {field} {stated}, the desired document says {desired}"
            return Declined(reason="signature", detail=detail)
    return None


def _open(envelope: bytes, trust: TrustStore) -> Desired:
    payload = verify(decode_envelope(envelope), DESIRED_TYPE, trust.keys_for(DESIRED_TYPE))
    if len(payload) > MAX_DESIRED_BYTES:
        raise BadMessageError(f"a desired document of {len(payload)} bytes is over the limit of {MAX_DESIRED_BYTES}")
    desired = decode(payload, Desired)
    for slot, wanted in desired.slots.items():
        if not _NAME.fullmatch(slot):
            raise BadMessageError(f"{slot[:64]!r} is not a slot name")
        if wanted.size <= 0 or wanted.health.soak_s < 0 or wanted.activate.jitter_s < 0:
            raise BadMessageError(f"slot {slot} has a negative size or duration")
    return desired


def _repeated(desired: Desired, applied: Desired) -> Desired | Refused:
    """A revision that is not new: fine where it says what was applied (it may be valid for longer now)."""
    if replace(desired, issued=applied.issued, not_after=applied.not_after) == applied:
        return desired if desired.not_after > applied.not_after else applied
    if desired.rev == applied.rev:
        text = f"revision {desired.rev} was applied before, with another content"
    else:
        text = f"revision {desired.rev} is older than the applied {applied.rev}"
    return Refused(code="stale", error=StaleRevisionError(text))
