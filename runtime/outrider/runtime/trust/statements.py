"""What Outrider signs: a bundle's digest, and the desired document of one device."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from outrider.runtime.digests import hash_file
from outrider.runtime.durable import write_file
from outrider.runtime.errors import BadMessageError, DigestMismatchError, UnsignedError
from outrider.runtime.trust.dsse import Envelope, decode_envelope, encode_envelope, sign, verify
from outrider.runtime.trust.keys import PrivateKey
from outrider.runtime.trust.store import TrustStore

BUNDLE_TYPE = TrustStore.FOLDERS["bundle"]
DESIRED_TYPE = TrustStore.FOLDERS["desired"]


class BundleStatement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle's detached signature says: these bytes are this name and version for this target."""

    v: Literal[1]
    sha256: str
    size: int
    name: str
    version: str
    target: str


def signature_path(bundle: Path) -> Path:
    """Where the detached signature of `x.orb` lies: `x.orb.dsse`."""
    return bundle.with_name(bundle.name + ".dsse")


def sign_bundle(bundle: Path, *, name: str, version: str, target: str, key: PrivateKey) -> Envelope:
    """Sign the bundle file and write `x.orb.dsse` beside it."""
    digest, size = hash_file(bundle)
    statement = BundleStatement(v=1, sha256=digest, size=size, name=name, version=version, target=target)
    envelope = sign(msgspec.json.encode(statement), BUNDLE_TYPE, [key])
    write_file(signature_path(bundle), encode_envelope(envelope))
    return envelope


def verify_bundle(bundle: Path, trust: TrustStore, envelope: Envelope | None = None) -> BundleStatement:
    """Check the detached signature of a bundle file against the store, and the file against the statement.

    Raises UnsignedError, UnknownKeyError, BadSignatureError or DigestMismatchError.
    """
    if envelope is None:
        try:
            envelope = decode_envelope(signature_path(bundle).read_bytes())
        except FileNotFoundError as e:
            raise UnsignedError(
                f"{bundle} has no signature beside it",
                hint="sign it with 'outrider publish' or 'outrider sign'",
            ) from e
    statement = verify_statement(envelope, trust)
    digest, size = hash_file(bundle)
    if (digest, size) != (statement.sha256, statement.size):
        raise DigestMismatchError(
            f"{bundle} is not the file that was signed: {digest[:16]}, signed {statement.sha256[:16]}"
        )
    return statement


def verify_statement(envelope: Envelope, trust: TrustStore) -> BundleStatement:
    """The statement inside a bundle's signature, once a trusted key's signature holds."""
    payload = verify(envelope, BUNDLE_TYPE, trust.keys_for(BUNDLE_TYPE))
    try:
        return msgspec.json.decode(payload, type=BundleStatement)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise BadMessageError(f"not a bundle statement: {e}") from e
