"""The HTTP API, one file a resource. A new resource is a file here and a line in `ROUTES`."""

from __future__ import annotations

ROUTES: tuple[str, ...] = (
    "outrider.fleet.routes.health:api",
    "outrider.fleet.routes.devices:api",
    "outrider.fleet.routes.bundles:api",
    "outrider.fleet.routes.releases:api",
    "outrider.fleet.routes.rollouts:api",
    "outrider.fleet.routes.models:api",
    "outrider.fleet.routes.triggers:api",
    "outrider.fleet.routes.jobs:api",
    "outrider.fleet.routes.audit:api",
)
