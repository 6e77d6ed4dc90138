"""What a compile reports: the bundle, and every candidate with what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outrider.runtime.bundle import CandidateRecord, GoalRecord, Manifest
from outrider.runtime.tolerance import Tolerance

_EVIDENCE = {
    "calibration": "real rows",
    "thresholds": "rows made from the model's own thresholds (no calibration was given)",
    "random": "random rows (no calibration was given)",
}


@dataclass(frozen=True)
class Report:
    """A compile that succeeded: the bundle's path, SHA-256 and manifest.

    `interrupted`: Ctrl-C ended the search, and this is the best that it had found.
    """

    path: Path
    sha256: str
    manifest: Manifest
    interrupted: bool = False

    @property
    def candidates(self) -> tuple[CandidateRecord, ...]:
        """Every candidate, measured, chosen or rejected and why."""
        return self.manifest.candidates

    def table(self) -> str:
        """The candidates as text: times in ns a row (median), sizes in bytes, errors; those not tried, by reason."""
        batches = sorted({found.batch for record in self.candidates for found in record.measured}) or [1]
        head = ("candidate", "outcome", "bytes", *(f"{n} row{'s' * (n > 1)}" for n in batches), "error", "why")
        tried = [record for record in self.candidates if record.outcome != "not eligible"]
        parity = next((record.parity for record in self.candidates if record.rank == 1), None)
        manifest = self.manifest
        lines = [
            f"{manifest.name} {manifest.version} for {manifest.target}: {manifest.source.description}",
            "",
            *align([head, *(_row(record, batches) for record in tried)]),
            "",
            *_not_eligible(self.candidates),
            "times: ns a row, CPU, median, with the call from Python",
        ]
        if parity is not None:
            allowed = Tolerance(parity.atol, parity.rtol, parity.of_max, parity.differing)
            lines.append(f"parity: {parity.rows} {_EVIDENCE[parity.evidence]}, every |error| <= {allowed}")
        lines += [
            f"goal {goal.text}: {met_text(goal)}, measured {goal.measured:.4g} {goal.unit}".rstrip()
            for goal in manifest.goals
            if goal.measured is not None
        ]
        return "\n".join(lines)


def met_text(goal: GoalRecord) -> str:
    """Whether a goal is met, in words."""
    return {True: "met", False: "NOT MET", None: "not measured"}[goal.met]


def _not_eligible(records: Sequence[CandidateRecord]) -> list[str]:
    """One line a reason, with all that share it."""
    names: dict[str, list[str]] = {}
    for record in records:
        if record.outcome == "not eligible":
            names.setdefault(record.reason, []).append(record.id)
    return [*(f"not eligible: {', '.join(ids)}: {reason}" for reason, ids in names.items()), *([""] if names else [])]


def _row(record: CandidateRecord, batches: Sequence[int]) -> tuple[str, ...]:
    times = {found.batch: f"{found.ns_per_row_median:,.0f}" for found in record.measured}
    return (
        record.id,
        record.outcome,
        "-" if record.size is None else f"{record.size:,}",
        *(times.get(batch, "-") for batch in batches),
        "-" if record.parity is None else f"{record.parity.max_abs_error:.1e}",
        record.reason,
    )


def align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of equal width: text to the left, numbers to the right, the last as it is."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:-1], widths[2:-1], strict=True)]
        lines.append("  ".join((*texts, *numbers, row[-1])))
    return lines
