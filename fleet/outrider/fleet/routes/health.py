"""Whether the fleet is up."""

from __future__ import annotations

from outrider.fleet.routes.wire import OPEN, Records, State
from outrider.runtime import __version__
from outrider.runtime.api_client.types import HealthInfo

api = Records("health")


@api.get("/health", needs=OPEN)
def health(state: State) -> HealthInfo:
    """Version and broker of the fleet. Needs no key."""
    return HealthInfo(status="ok", version=__version__, broker=state.broker.kind)
