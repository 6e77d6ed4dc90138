"""Key pairs: Ed25519 (RFC 8032) by default, ECDSA P-256 with SHA-256 where hardware asks for it.

A key's id is the SHA-256 of its DER SubjectPublicKeyInfo, in hex, so it never depends on a file name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from outrider.runtime.durable import write_file, write_new_file
from outrider.runtime.errors import BadInputError, ConflictError, NotFoundError

Algorithm = Literal["ed25519", "p256"]


@dataclass(frozen=True)
class PublicKey:
    """A verifying key."""

    key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey

    @property
    def keyid(self) -> str:
        """SHA-256 of the DER SubjectPublicKeyInfo, 64 hex digits."""
        der = self.key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(der).hexdigest()

    def pem(self) -> str:
        """The key as PEM text (SubjectPublicKeyInfo)."""
        return self.key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode("ascii")

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` was made over `data` by the matching private key."""
        try:
            if isinstance(self.key, ed25519.Ed25519PublicKey):
                self.key.verify(signature, data)
            else:
                self.key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """A signing key."""

    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

    @property
    def public(self) -> PublicKey:
        """The verifying half."""
        return PublicKey(self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        """The raw signature (64 bytes for Ed25519, DER for P-256)."""
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(data)
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))

    def pem(self) -> str:
        """The key as unencrypted PEM text (PKCS #8)."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode("ascii")


def generate_key(algorithm: Algorithm = "ed25519") -> PrivateKey:
    """A fresh key from the operating system's randomness."""
    if algorithm == "ed25519":
        return PrivateKey(ed25519.Ed25519PrivateKey.generate())
    return PrivateKey(ec.generate_private_key(ec.SECP256R1()))


def public_key_from_pem(text: str | bytes, *, origin: str = "key") -> PublicKey:
    """Parse PEM text. Raises BadInputError where it is not an Ed25519 or P-256 public key."""
    raw = text.encode("ascii", "replace") if isinstance(text, str) else text
    try:
        key = serialization.load_pem_public_key(raw)
    except ValueError as e:
        raise BadInputError(f"{origin} is not a PEM public key", hint="make keys with 'outrider keys init'") from e
    if isinstance(key, ed25519.Ed25519PublicKey):
        return PublicKey(key)
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return PublicKey(key)
    raise BadInputError(f"{origin} is neither an Ed25519 nor a P-256 key")


def load_public_key(path: Path | str) -> PublicKey:
    """Read a public key from a PEM file."""
    return public_key_from_pem(_read(Path(path)), origin=str(path))


def load_private_key(path: Path | str) -> PrivateKey:
    """Read a private key from an unencrypted PKCS #8 PEM file."""
    try:
        key = serialization.load_pem_private_key(_read(Path(path)), password=None)
    except (ValueError, TypeError) as e:
        raise BadInputError(f"{path} is not an unencrypted PEM private key") from e
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return PrivateKey(key)
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return PrivateKey(key)
    raise BadInputError(f"{path} is neither an Ed25519 nor a P-256 key")


def write_key_pair(key: PrivateKey, folder: Path, name: str) -> tuple[Path, Path]:
    """Write `name.key` (mode 0600) and `name.pub` into `folder`. An existing key is never overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    try:
        write_new_file(private, key.pem().encode("ascii"), mode=0o600)
    except FileExistsError as e:
        raise ConflictError(
            f"{private} already exists", hint="keys are never overwritten; choose another folder"
        ) from e
    write_file(public, key.public.pem().encode("ascii"))
    return private, public


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise NotFoundError(
            f"cannot read the key {path}: {e.strerror}", hint="make keys with 'outrider keys init'"
        ) from e
