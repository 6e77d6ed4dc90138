"""Who this device is and whom it trusts: one file in `state_dir`, written once at enrolment.

Keys and credentials are in the same file, so that one rename makes the device enrolled: there is no moment at
which it has a name but trusts nobody.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from outrider.runtime.durable import make_folder, storage_errors, write_file
from outrider.runtime.errors import BadConfigError, StorageError
from outrider.runtime.messages.topics import Address, Identifier
from outrider.runtime.trust import TrustStore

IDENTITY_FILE = "identity.json"


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What enrolment gave the device. `trust` maps `desired` and `bundle` to PEM public keys."""

    tenant: Identifier
    device: Identifier
    name: str
    secret: str
    api_url: str
    mqtt_host: str
    mqtt_port: int
    mqtt_username: str
    mqtt_password: str
    trust: dict[str, tuple[str, ...]]

    @property
    def address(self) -> Address:
        """The device's place in the topic tree."""
        return Address(tenant=self.tenant, device=self.device)

    @property
    def client_id(self) -> str:
        """The MQTT client id, on which the broker keeps the session."""
        return f"{self.tenant}-{self.device}"

    def trust_store(self) -> TrustStore:
        """The pinned keys. Raises BadInputError where one does not parse."""
        return TrustStore.from_pems({name: self.trust.get(name, ()) for name in TrustStore.FOLDERS})


def load_identity(state_dir: Path) -> Identity | None:
    """The saved identity, or None where the device is not enrolled. Raises BadConfigError where it is damaged."""
    path = state_dir / IDENTITY_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise StorageError(f"cannot read {path}: {e.strerror}") from e
    try:
        return msgspec.json.decode(data, type=Identity)
    except msgspec.DecodeError as e:
        raise BadConfigError(
            f"the identity {path} is damaged: {e}", hint="delete it and enrol again with a new token"
        ) from e


def save_identity(identity: Identity, state_dir: Path) -> Path:
    """Write the identity, whole or not at all, readable by its owner alone."""
    path = state_dir / IDENTITY_FILE
    with storage_errors(f"make {state_dir}"):
        make_folder(state_dir)
    write_file(path, msgspec.json.format(msgspec.json.encode(identity), indent=2), mode=0o600)
    return path
