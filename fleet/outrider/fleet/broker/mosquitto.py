"""Eclipse Mosquitto with a generated configuration: one account and one access list entry a device.

A device's user name is `tenant/device`; the patterns of the access list put it into its topics, so that a device can
publish to its own `up/#` and read its own `dn/#`, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import ClassVar

from outrider.fleet.broker import MAX_PACKET_BYTES, Kind, reachable
from outrider.fleet.broker.connack import ACCEPTED, connect_reason
from outrider.fleet.broker.supervise import Supervisor
from outrider.runtime.durable import write_file
from outrider.runtime.errors import BadInputError, NotFoundError, UnavailableError
from outrider.runtime.messages import ROOT, shared_up_filter

MANAGER = "outrider-manager"
# An account that may do nothing: its password changes with every rewrite of the file, so being let in with the newest
# one proves that the broker has read the newest file.
WITNESS = "outrider-witness"
RELOAD_TIMEOUT_S = 10.0
SESSION_EXPIRY = "30d"
# What one client may leave unread, in memory and saved to disk: a device that asks for blocks and reads none of them
# must not take the broker's memory. The manager falls behind as far only where it hangs.
MAX_QUEUED_BYTES = 64 * 1024 * 1024

# Mosquitto's own defaults (mosquitto_passwd, 2.0). Few iterations are enough: every password is 256 random bits.
ITERATIONS = 101
SALT_BYTES = 12

_ACCESS_LIST = f"""\
user {MANAGER}
topic readwrite {ROOT}/#

pattern write {ROOT}/%u/up/#
pattern read {ROOT}/%u/dn/#
"""

_CONFIGURATION = """\
# Written at every start; changes made here are lost.
listener {port} {host}
{account}
max_packet_size {packet}
max_inflight_messages 100
max_queued_messages 20000
max_queued_bytes {queued}
set_tcp_nodelay true
allow_anonymous false
# A client cannot take over another's session by naming its client id.
use_username_as_clientid true
password_file {folder}/passwords
acl_file {folder}/access
persistence true
persistence_location {folder}/
persistence_file mosquitto.db
autosave_interval 1
persistent_client_expiration {expiry}
log_dest file {folder}/mosquitto.log
log_type error
log_type warning
log_type notice
connection_messages false
log_timestamp_format %Y-%m-%dT%H:%M:%S
"""


class MosquittoBroker:
    """Mosquitto as a supervised child. Device accounts last in `passwords`; the manager's changes at every start."""

    kind: ClassVar[Kind] = "mosquitto"
    isolates: ClassVar[bool] = True

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.manager_username = MANAGER
        self.manager_password = secrets.token_urlsafe(32)
        self._folder = folder.resolve()
        self.up_filter = shared_up_filter(_share_name(self._folder / "share"))
        self._accounts = PasswordFile(self._folder / "passwords")
        self._program = _program() or "mosquitto"
        self._supervisor = Supervisor(
            "mosquitto",
            [self._program, "-c", str(self._folder / "mosquitto.conf")],
            output=self._folder / "output.log",
            ready=self._accepts_newest,
        )

    @classmethod
    def available(cls) -> bool:
        """Whether the `mosquitto` program is on PATH or in an sbin folder."""
        return _program() is not None

    @property
    def generation(self) -> int:
        """How many times Mosquitto was restarted since `start`."""
        return self._supervisor.generation

    @property
    def pid(self) -> int | None:
        """Mosquitto's process id."""
        return self._supervisor.pid

    def start(self) -> None:
        """Write the configuration, start, and wait until the manager's account is accepted."""
        self._accounts.change({self.manager_username: self.manager_password})
        write_file(self._folder / "access", _ACCESS_LIST.encode(), mode=0o600)
        write_file(self._folder / "mosquitto.conf", self._configuration().encode(), mode=0o600)
        self._supervisor.start()

    def stop(self) -> None:
        """Stop Mosquitto, which saves its state on SIGTERM."""
        self._supervisor.stop()

    def add_device(self, username: str, password: str) -> None:
        """Add or replace an account. Raises BadInputError for a name that would match other devices' topics."""
        self._accounts.change({check_username(username): password})
        self._reload()

    def remove_device(self, username: str) -> None:
        """Remove an account; a connection made with it is closed. Raises NotFoundError."""
        if username not in self._accounts:
            raise NotFoundError(f"the broker has no account {username}")
        self._accounts.change({username: None})
        self._reload()

    def _reload(self) -> None:
        self._supervisor.signal(signal.SIGHUP)
        deadline = time.monotonic() + RELOAD_TIMEOUT_S
        while not self._accepts_newest():
            if time.monotonic() > deadline:
                raise UnavailableError(f"mosquitto did not read its accounts again within {RELOAD_TIMEOUT_S:.0f} s")
            time.sleep(0.02)

    def _accepts_newest(self) -> bool:
        reason = connect_reason(
            reachable(self.host), self.port, client_id=WITNESS, username=WITNESS, password=self._accounts.witness
        )
        return reason == ACCEPTED

    def _configuration(self) -> str:
        return _CONFIGURATION.format(
            port=self.port,
            host=self.host,
            # Started as root it would become `mosquitto`, which cannot write here; elsewhere it stays who it is.
            account="user root" if os.geteuid() == 0 else "",
            packet=MAX_PACKET_BYTES,
            queued=MAX_QUEUED_BYTES,
            folder=self._folder,
            expiry=SESSION_EXPIRY,
        )


class PasswordFile:
    """Accounts and their password hashes, one `name:$7$...` line each, replaced as a whole.

    Changes that arrive while the file is being written are written together by the next round.
    """

    def __init__(self, path: Path) -> None:
        self.witness = ""
        self._path = path
        self._lines: dict[str, str] = {}
        self._guard = threading.Lock()
        self._writing = threading.Lock()
        self._version = 0
        self._written = 0
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                name, _, digest = line.partition(":")
                self._lines[name] = digest

    def __contains__(self, username: str) -> bool:
        return username in self._lines

    def change(self, passwords: dict[str, str | None]) -> None:
        """Set (or with None remove) the password of each name; on disk when this returns."""
        hashed = {name: None if word is None else hash_password(word) for name, word in passwords.items()}
        with self._guard:
            for name, digest in hashed.items():
                if digest is None:
                    self._lines.pop(name, None)
                else:
                    self._lines[name] = digest
            self._version += 1
            mine = self._version
        with self._writing:
            if self._written >= mine:
                return
            with self._guard:
                witness = secrets.token_urlsafe(32)
                self._lines[WITNESS] = hash_password(witness)
                text = "".join(f"{name}:{digest}\n" for name, digest in self._lines.items())
                version = self._version
            write_file(self._path, text.encode("utf-8"), mode=0o600)
            self._written, self.witness = version, witness


def hash_password(password: str, salt: bytes | None = None) -> str:
    """`$7$iterations$salt$hash`: PBKDF2 with SHA-512, as `mosquitto_passwd` of version 2 writes it."""
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    digest = hashlib.pbkdf2_hmac("sha512", password.encode("utf-8"), salt, ITERATIONS)
    return f"$7${ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def check_username(username: str) -> str:
    """A user name that is safe in topics and in the password file: `tenant/device`. Raises BadInputError."""
    tenant, slash, device = username.partition("/")
    if not slash or not tenant or not device or set(username) & set("+#:\n\r\0") or "/" in device:
        raise BadInputError(f"{username!r} is not a tenant/device name")
    return username


def _share_name(path: Path) -> str:
    """The name of the manager's shared subscription, made once and kept secret.

    Mosquitto lets every client join a share whose name it knows, whatever the access list says, and then drops the
    messages that fall to one that may not read them. The name stays, as the session that the broker keeps has it.
    """
    try:
        name = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        name = ""
    if not name:
        name = secrets.token_hex(16)
        write_file(path, name.encode("ascii"), mode=0o600)
    return name


def _program() -> str | None:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/local/bin")
