"""The detached signature of an open bundle: it must hold, and be about this very bundle."""

from __future__ import annotations

from outrider.runtime.bundle.reader import Bundle
from outrider.runtime.errors import BadSignatureError, DigestMismatchError
from outrider.runtime.trust import Envelope, TrustStore, verify_bundle


def check_signature(bundle: Bundle, trust: TrustStore, envelope: Envelope | None = None) -> None:
    """Check the signature (`envelope`, or None for the file beside the bundle) against the trusted keys.

    Raises TrustError; DigestMismatchError where the signature, or the file by now, is of other bytes.
    """
    statement = verify_bundle(bundle.path, trust, envelope)
    if statement.sha256 != bundle.sha256:
        raise DigestMismatchError(f"{bundle.path} changed after it was opened")
    manifest = bundle.manifest
    if (statement.name, statement.version, statement.target) != (manifest.name, manifest.version, manifest.target):
        raise BadSignatureError(
            f"the signature is for {statement.name} {statement.version} ({statement.target}), "
            f"the bundle is {manifest.name} {manifest.version} ({manifest.target})"
        )
