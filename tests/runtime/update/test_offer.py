"""Desired documents of any shape: accepted as they were signed, or refused for a stated reason, and nothing else."""

from __future__ import annotations

import base64
import time
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.runtime.errors import BadInputError, BadMessageError
from outrider.runtime.messages import MAX_DESIRED_BYTES, Address, Desired, SlotDesired, encode
from outrider.runtime.offer import Refused, check_slot, examine
from outrider.runtime.trust import DESIRED_TYPE, TrustStore, encode_envelope, generate_key, sign

KEY = generate_key()
TRUST = TrustStore({DESIRED_TYPE: [KEY.public]})
ADDRESS = Address(tenant="acme", device="pump-1")
CODES = {"unsigned", "key", "signature", "malformed", "address", "stale", "expired"}
NOW = time.time()
SLOT = SlotDesired(bundle="0" * 64, size=1, name="m", version="1", release=1, target="host", signature="", artifacts=())
DOCUMENT = Desired(
    v=1,
    tenant="acme",
    device="pump-1",
    rev=3,
    issued=NOW,
    not_after=NOW + 60,
    job="j",
    attempt=1,
    rollback_floor=0,
    slots={"main": SLOT},
)
ENVELOPE = encode_envelope(sign(encode(DOCUMENT), DESIRED_TYPE, [KEY]))


def _examine(envelope: bytes, applied: Desired | None = None, wall: float = NOW) -> Desired | Refused:
    return examine(envelope, trust=TRUST, address=ADDRESS, applied=applied, wall=wall)


def _sign(document: Desired) -> bytes:
    return encode_envelope(sign(encode(document), DESIRED_TYPE, [KEY]))


def test_a_good_document() -> None:
    assert _examine(ENVELOPE) == DOCUMENT


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=400))
def test_noise(data: bytes) -> None:
    found = _examine(data)
    assert isinstance(found, Refused)
    assert isinstance(found.error, BadMessageError)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(0, len(ENVELOPE) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_a_changed_byte_never_changes_what_is_accepted(at: int, value: int, cut: bool) -> None:
    changed = ENVELOPE[:at] if cut else ENVELOPE[:at] + bytes([value]) + ENVELOPE[at + 1 :]
    found = _examine(changed)
    if isinstance(found, Refused):
        assert found.code in CODES
        assert isinstance(found.error, BadInputError)
    else:
        assert found == DOCUMENT


@settings(max_examples=60, deadline=None)
@given(
    payload=st.recursive(
        st.none() | st.integers() | st.text(max_size=5), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_a_signed_payload_that_is_no_document(payload: Any) -> None:
    found = _examine(encode_envelope(sign(msgspec.json.encode(payload), DESIRED_TYPE, [KEY])))
    assert isinstance(found, Refused)
    assert found.code == "malformed"


def test_a_document_that_is_too_large() -> None:
    large = msgspec.structs.replace(DOCUMENT, job="x" * MAX_DESIRED_BYTES)
    found = _examine(_sign(large))
    assert isinstance(found, Refused)
    assert "over the limit" in str(found.error)


@pytest.mark.parametrize("slot", ["main\n", "..", "a b", "\u00e9"])
def test_slot_names(slot: str) -> None:
    found = _examine(_sign(msgspec.structs.replace(DOCUMENT, slots={slot: SLOT})))
    assert isinstance(found, Refused)
    assert found.code == "malformed"


@pytest.mark.parametrize("years", [-10, 10])
def test_a_clock_that_jumped_keeps_what_was_applied(years: int) -> None:
    wall = NOW + years * 365 * 86_400
    assert _examine(ENVELOPE, applied=DOCUMENT, wall=wall) == DOCUMENT
    older = _sign(msgspec.structs.replace(DOCUMENT, rev=2))
    found = _examine(older, applied=DOCUMENT, wall=wall)
    assert isinstance(found, Refused)
    assert found.code == "stale"


def test_the_same_revision_may_be_valid_for_longer_but_not_shorter() -> None:
    longer = msgspec.structs.replace(DOCUMENT, not_after=NOW + 600)
    assert _examine(_sign(longer), applied=DOCUMENT) == longer
    assert _examine(ENVELOPE, applied=longer) == longer


@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=80) | st.binary(max_size=60).map(lambda raw: base64.b64encode(raw).decode()))
def test_any_text_as_a_bundle_s_signature_is_declined(text: str) -> None:
    wanted = msgspec.structs.replace(SLOT, signature=text)
    declined = check_slot(wanted, floor=0, trust=TRUST)
    assert declined is not None
    assert declined.reason == "malformed"
