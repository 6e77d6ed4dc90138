"""The audit log: a hash chain that is only ever added to.

Each entry's hash is SHA-256 over the previous hash and the entry's canonical JSON, so a changed, removed or inserted
entry breaks the chain from there on. Cutting off the end is seen only by whoever kept a later head: give it to
`verify` as `known_head`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from outrider.fleet.db import AuditRow
from outrider.runtime.api_client.types import AuditReport

GENESIS = "0" * 64
_BATCH = 1000


def record(
    session: Session, *, actor: str, action: str, subject: str, detail: dict[str, Any] | None = None, now: float
) -> AuditRow:
    """Add an entry inside the caller's transaction, so that the deed and its record happen both or neither.

    `actor` is who (`key:admin`, `device:till-7`, `fleet`), `action` what (`rollout.create`), `subject` to what.
    """
    take_turns(session)  # two writers could extend the same head
    session.flush()
    last = session.scalars(select(AuditRow.hash).order_by(AuditRow.id.desc()).limit(1)).first() or GENESIS
    row = AuditRow(at=now, actor=actor, action=action, subject=subject, detail=detail or {}, prev_hash=last)
    row.hash = entry_hash(row)
    session.add(row)
    session.flush()
    return row


def take_turns(session: Session) -> None:
    """Wait until no other transaction that records anything is under way, and keep others waiting until this one ends.

    For what is looked up first and recorded then; it is the one lock of its kind, so that none waits for another.
    """
    if session.get_bind().dialect.name == "postgresql":  # SQLite's write lock is held already
        session.execute(text("LOCK TABLE audit IN SHARE ROW EXCLUSIVE MODE"))


def entry_hash(row: AuditRow) -> str:
    """SHA-256 over the previous hash and the canonical JSON of the entry, 64 hex digits."""
    content = {"at": row.at, "actor": row.actor, "action": row.action, "subject": row.subject, "detail": row.detail}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{row.prev_hash}\n{canonical}".encode()).hexdigest()


def verify(session: Session, *, known_head: str | None = None) -> AuditReport:
    """Walk the whole chain. `known_head` is a head that was seen earlier and must still be in it."""
    head, count, seen = GENESIS, 0, known_head in (None, GENESIS)
    for row in session.scalars(select(AuditRow).order_by(AuditRow.id).execution_options(yield_per=_BATCH)):
        count += 1
        problem = None
        if row.prev_hash != head:
            problem = "it does not follow the entry before it"
        elif row.hash != entry_hash(row):
            problem = "its content was changed"
        if problem is not None:
            return AuditReport(entries=count, intact=False, head=head, broken_at=row.id, problem=problem)
        head = row.hash
        seen = seen or head == known_head
    if not seen:
        return AuditReport(
            entries=count, intact=False, head=head, broken_at=None, problem="the known head is not in the log"
        )
    return AuditReport(entries=count, intact=True, head=head, broken_at=None, problem=None)
