"""Which public key is trusted for which purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from outrider.runtime.durable import make_folder, write_file
from outrider.runtime.errors import BadConfigError
from outrider.runtime.trust.keys import PublicKey, load_public_key, public_key_from_pem


class TrustStore:
    """Public keys by purpose. A purpose is a DSSE payload type (`BUNDLE_TYPE`, `DESIRED_TYPE`).

    On disk it is a folder with one sub-folder a purpose (`bundle/`, `desired/`), each holding `*.pub` PEM files.
    """

    FOLDERS: Mapping[str, str] = {
        "bundle": "application/vnd.outrider.bundle+json",
        "desired": "application/vnd.outrider.desired+json",
    }

    def __init__(self, keys: Mapping[str, Iterable[PublicKey]]) -> None:
        self._keys = {purpose: tuple(trusted) for purpose, trusted in keys.items()}

    def keys_for(self, payload_type: str) -> tuple[PublicKey, ...]:
        """The keys trusted to sign payloads of this type."""
        return self._keys.get(payload_type, ())

    @classmethod
    def load(cls, folder: Path | str) -> TrustStore:
        """Read a store from its folder, or, given one `.pub` file, trust that key for bundles."""
        path = Path(folder)
        if path.is_file():
            return cls({cls.FOLDERS["bundle"]: [load_public_key(path)]})
        if not path.is_dir():
            raise BadConfigError(
                f"there is no trust store at {path}", hint="enrol the device, or name a folder or .pub file"
            )
        return cls(
            {
                purpose: [load_public_key(p) for p in sorted((path / name).glob("*.pub"))]
                for name, purpose in cls.FOLDERS.items()
            }
        )

    @classmethod
    def from_pems(cls, pems: Mapping[str, Iterable[str]]) -> TrustStore:
        """A store from PEM texts under the folder names `bundle` and `desired`."""
        return cls({cls.FOLDERS[name]: [public_key_from_pem(text) for text in texts] for name, texts in pems.items()})

    def save(self, folder: Path) -> None:
        """Write the store as a folder, each file and folder flushed to disk."""
        for name, purpose in self.FOLDERS.items():
            place = folder / name
            make_folder(place)
            for key in self.keys_for(purpose):
                write_file(place / f"{key.keyid[:16]}.pub", key.pem().encode("ascii"))
