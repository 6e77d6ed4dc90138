"""Signatures: DSSE envelopes with Ed25519 or P-256 keys, and the store that says which key is trusted for what."""

from outrider.runtime.trust.dsse import Envelope, Signature, decode_envelope, encode_envelope, sign, verify
from outrider.runtime.trust.keys import (
    Algorithm,
    PrivateKey,
    PublicKey,
    generate_key,
    load_private_key,
    load_public_key,
    write_key_pair,
)
from outrider.runtime.trust.statements import (
    BUNDLE_TYPE,
    DESIRED_TYPE,
    BundleStatement,
    sign_bundle,
    verify_bundle,
)
from outrider.runtime.trust.store import TrustStore

__all__ = [
    "BUNDLE_TYPE",
    "DESIRED_TYPE",
    "Algorithm",
    "BundleStatement",
    "Envelope",
    "PrivateKey",
    "PublicKey",
    "Signature",
    "TrustStore",
    "decode_envelope",
    "encode_envelope",
    "generate_key",
    "load_private_key",
    "load_public_key",
    "sign",
    "sign_bundle",
    "verify",
    "verify_bundle",
    "write_key_pair",
]
