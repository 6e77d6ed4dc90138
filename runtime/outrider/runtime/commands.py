"""What the fleet may ask of a device on `dn/cmd/{name}`: a table, each answering with text by name.

Commands only read. They are not signed, so nothing here may ever change what the device runs.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from outrider.runtime import __version__
from outrider.runtime.errors import BadMessageError, NotFoundError
from outrider.runtime.logs import Tail
from outrider.runtime.models import Models
from outrider.runtime.store import Store

MAX_REPLY_BYTES = 64 * 1024


class LogsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for the last `lines` log lines."""

    lines: int = 100


@dataclass(frozen=True, kw_only=True)
class Context:
    """What commands may read. `started` is in `time.monotonic()` seconds."""

    store: Store
    models: Models
    tail: Tail
    boot_id: str
    started: float


def logs(context: Context, payload: bytes) -> dict[str, str]:
    """The last log lines, as many as fit into a reply."""
    try:
        request = msgspec.json.decode(payload or b"{}", type=LogsRequest)
    except msgspec.DecodeError as e:
        raise BadMessageError(f"not a logs request: {e}") from e
    text = "\n".join(context.tail.last(request.lines)).encode("utf-8")
    return {"lines": text[-MAX_REPLY_BYTES:].decode("utf-8", "ignore")}


def diagnostics(context: Context, payload: bytes) -> dict[str, str]:
    """Versions, memory, disk, outbox and slots."""
    del payload
    import psutil

    disk, outbox = context.store.disk(), context.store.outbox
    report = {
        "runtime": __version__,
        "python": sys.version.split()[0],
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "boot_id": context.boot_id,
        "pid": str(os.getpid()),
        "uptime_s": f"{time.monotonic() - context.started:.0f}",
        "rss_bytes": str(psutil.Process().memory_info().rss),
        "disk_free_bytes": str(disk.free),
        "outbox_bytes": str(outbox.bytes_waiting()),
        "outbox_dropped": ", ".join(f"{kind} {count}" for kind, count in outbox.dropped.items()),
        "revision": str(context.store.revision()),
    }
    return report | {f"slot.{slot}": context.models.sha256(slot) or "" for slot in context.models.slots()}


COMMANDS: dict[str, Callable[[Context, bytes], dict[str, str]]] = {"logs": logs, "diagnostics": diagnostics}


def run_command(context: Context, name: str, payload: bytes) -> dict[str, str]:
    """Run one command of the table. Raises NotFoundError for an unknown one."""
    command = COMMANDS.get(name)
    if command is None:
        raise NotFoundError(f"there is no command {name[:64]!r}, there are {', '.join(COMMANDS)}")
    return command(context, payload)
