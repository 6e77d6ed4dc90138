"""DSSE: Dead Simple Signing Envelope, version 1.0 (secure-systems-lab/dsse, protocol.md).

What is signed is the pre-authentication encoding of type and payload, so that a signature for one purpose
cannot be passed off as one for another.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

import msgspec

from outrider.runtime.errors import BadMessageError, BadSignatureError, UnknownKeyError, UnsignedError
from outrider.runtime.trust.keys import PrivateKey, PublicKey

MAX_ENVELOPE_BYTES = 1 << 20


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """One signature: the signer's key id and the base64 of the raw signature."""

    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, kw_only=True, rename={"payload_type": "payloadType"}):
    """A payload (base64), its type, and at least one signature."""

    payload: str
    payload_type: str
    signatures: tuple[Signature, ...]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """PAE(type, body) = "DSSEv1" SP len(type) SP type SP len(body) SP body."""
    kind = payload_type.encode("utf-8")
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])


def sign(payload: bytes, payload_type: str, keys: Iterable[PrivateKey]) -> Envelope:
    """Sign `payload` with each key."""
    message = pre_authentication_encoding(payload_type, payload)
    signatures = tuple(
        Signature(keyid=key.public.keyid, sig=base64.b64encode(key.sign(message)).decode("ascii")) for key in keys
    )
    return Envelope(payload=base64.b64encode(payload).decode("ascii"), payload_type=payload_type, signatures=signatures)


def verify(envelope: Envelope, payload_type: str, keys: Iterable[PublicKey]) -> bytes:
    """The payload, once one trusted key's signature over it holds.

    Raises UnsignedError, UnknownKeyError or BadSignatureError; BadMessageError where type or base64 is wrong.
    """
    if envelope.payload_type != payload_type:
        raise BadMessageError(f"expected an envelope of {payload_type}, got {envelope.payload_type}")
    if not envelope.signatures:
        raise UnsignedError("the envelope carries no signature")
    payload = _decode_base64(envelope.payload)
    message = pre_authentication_encoding(payload_type, payload)
    trusted = {key.keyid: key for key in keys}
    known = [signature for signature in envelope.signatures if signature.keyid in trusted]
    if not known:
        raise UnknownKeyError(f"signed by {envelope.signatures[0].keyid[:16]}, which is not trusted for {payload_type}")
    if any(trusted[signature.keyid].verifies(_decode_base64(signature.sig), message) for signature in known):
        return payload
    raise BadSignatureError(f"the signature by {known[0].keyid[:16]} does not verify")


def encode_envelope(envelope: Envelope) -> bytes:
    """The envelope as JSON."""
    return msgspec.json.encode(envelope)


def decode_envelope(data: bytes) -> Envelope:
    """Parse a JSON envelope. Raises BadMessageError."""
    if len(data) > MAX_ENVELOPE_BYTES:
        raise BadMessageError(f"an envelope of {len(data)} bytes is over the limit of {MAX_ENVELOPE_BYTES}")
    try:
        return msgspec.json.decode(data, type=Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise BadMessageError(f"not a DSSE envelope: {e}") from e


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise BadMessageError("the envelope holds invalid base64") from e
