"""Releases and their lineage."""

from __future__ import annotations

from sqlalchemy import select

from outrider.fleet import lineage
from outrider.fleet.db import ReleaseRow
from outrider.fleet.routes.wire import Records, State
from outrider.fleet.views import release_infos
from outrider.runtime.api_client.types import Lineage, ReleaseInfo

api = Records("registry")


@api.get("/releases")
def list_releases(state: State, name: str | None = None) -> list[ReleaseInfo]:
    """All releases, newest first, of one model where it is named."""
    query = select(ReleaseRow).order_by(ReleaseRow.number.desc())
    with state.database.read() as session:
        rows = session.scalars(query if name is None else query.where(ReleaseRow.name == name))
        return release_infos(session, list(rows))


@api.get("/releases/{name}/{version}/lineage")
def get_lineage(name: str, version: str, state: State) -> Lineage:
    """What a release was made from and where it went: data → run → bundle → rollout → devices."""
    with state.database.read() as session:
        return lineage.trace(session, name, version)
