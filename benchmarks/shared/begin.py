"""What a run says of itself: when and where it was, how long it took, and who took part."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from benchmarks.shared.machine import this_machine
from benchmarks.shared.peers import Contender
from benchmarks.shared.records import PeerInfo

#: Told what is going on; the second argument is how much of the run is over.
Tell = Callable[[str, int], None]


@dataclass(frozen=True)
class Begin:
    """When a run began, and the load average then."""

    time: float = field(default_factory=time.monotonic)
    load: float = field(default_factory=lambda: os.getloadavg()[0])

    def until_now(self, minutes: float) -> dict[str, Any]:
        """A result's `date`, `machine`, and `minutes`, to which earlier runs' are added."""
        return {
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "minutes": round(minutes + (time.monotonic() - self.time) / 60, 1),
            "machine": msgspec.structs.replace(
                this_machine(), load=(round(self.load, 1), round(os.getloadavg()[0], 1))
            ),
        }


def peer_info(name: str, peer: Contender) -> PeerInfo:
    """A contender as the report names it."""
    return PeerInfo(name=name, version=peer.version(), call=peer.call)
