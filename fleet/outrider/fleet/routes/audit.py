"""The audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from sqlalchemy import select

from outrider.fleet import audit
from outrider.fleet.db import AuditRow
from outrider.fleet.routes.wire import Count, Records, State
from outrider.fleet.views import audit_entry
from outrider.runtime.api_client.types import AuditEntry, AuditReport

api = Records("audit")


@api.get("/audit")
def list_audit(state: State, limit: Count = 100) -> list[AuditEntry]:
    """The last entries, oldest first."""
    with state.database.read() as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)).all()
    return [audit_entry(row) for row in reversed(rows)]


@api.get("/audit/verify")
def verify_audit(
    state: State, known_head: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$")] = None
) -> AuditReport:
    """Check the whole chain, and that a head that was kept elsewhere is still in it."""
    with state.database.read() as session:
        return audit.verify(session, known_head=known_head)
