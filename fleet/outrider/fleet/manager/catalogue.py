"""Published bundles as the manager needs them. They never change, so what was read once is kept."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from outrider.fleet.db import BundleRow
from outrider.fleet.desired import BundleFacts, artifact_needs
from outrider.runtime.errors import BadBundleError
from outrider.runtime.profile import Baseline, decode_baseline


@dataclass(frozen=True)
class Entry:
    """One bundle: what the desired document says of it, and the baseline that its windows were counted against."""

    facts: BundleFacts
    baseline: Baseline | None


class Catalogue:
    """Bundles by digest, and the digests of each release. Belongs to one thread."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def entry(self, session: Session, sha256: str) -> Entry | None:
        """A bundle, or None where it is not published."""
        if sha256 not in self._entries:
            row = session.get(BundleRow, sha256)
            if row is None:
                return None
            self._entries[sha256] = _entry(row)
        return self._entries[sha256]

    def release(self, session: Session, number: int) -> list[BundleFacts]:
        """The bundles of a release, one a target. A release may still grow."""
        found = session.scalars(select(BundleRow.sha256).filter_by(release=number).order_by(BundleRow.sha256))
        entries = [self.entry(session, sha256) for sha256 in found.all()]
        return [entry.facts for entry in entries if entry is not None]


def _entry(row: BundleRow) -> Entry:
    facts = BundleFacts(
        sha256=row.sha256,
        size=row.size,
        name=row.name,
        version=row.version,
        release=row.release,
        target=row.target,
        signature=row.envelope,
        artifacts=artifact_needs(row.manifest),
    )
    try:
        return Entry(facts, None if row.baseline is None else decode_baseline(row.baseline))
    except BadBundleError:
        return Entry(facts, None)
