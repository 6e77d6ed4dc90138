"""What a compile reports: the bundle, and every candidate with what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outrider.compiler.measure import BATCHES
from outrider.runtime.bundle import CandidateRecord, Manifest

_EVIDENCE = {
    "calibration": "real rows",
    "thresholds": "rows made from the model's own thresholds (no calibration was given)",
    "random": "random rows (no calibration was given)",
}


@dataclass(frozen=True)
class Report:
    """A compile that succeeded: the bundle's path, SHA-256 and manifest."""

    path: Path
    sha256: str
    manifest: Manifest

    @property
    def candidates(self) -> tuple[CandidateRecord, ...]:
        """Every candidate, measured, chosen or rejected and why."""
        return self.manifest.candidates

    def table(self) -> str:
        """The candidates as text: times in ns a row (median), sizes in bytes, the largest absolute error."""
        head = (
            "candidate",
            "outcome",
            "bytes",
            *(f"{batch} row{'s' * (batch > 1)}" for batch in BATCHES),
            "error",
            "why",
        )
        rows = [_row(record) for record in self.candidates]
        parity = next((record.parity for record in self.candidates if record.rank == 1), None)
        manifest = self.manifest
        lines = [
            f"{manifest.name} {manifest.version} for {manifest.target}: {manifest.source.description}",
            "",
            *_align([head, *rows]),
            "",
            "times: ns a row, CPU, median, with the call from Python",
        ]
        if parity is not None:
            lines.append(
                f"parity: {parity.rows} {_EVIDENCE[parity.evidence]}, every |error| <= "
                f"{parity.atol:g} + {parity.rtol:g} |value|"
            )
        lines += [
            f"goal {goal.text}: measured {goal.measured:.4g} {goal.unit}".rstrip()
            for goal in manifest.goals
            if goal.measured is not None
        ]
        return "\n".join(lines)


def _row(record: CandidateRecord) -> tuple[str, ...]:
    times = {found.batch: f"{found.ns_per_row_median:,.0f}" for found in record.measured}
    return (
        record.id,
        record.outcome,
        "-" if record.size is None else f"{record.size:,}",
        *(times.get(batch, "-") for batch in BATCHES),
        "-" if record.parity is None else f"{record.parity.max_abs_error:.1e}",
        record.reason,
    )


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of equal width: text to the left, numbers to the right, the last as it is."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:-1], widths[2:-1], strict=True)]
        lines.append("  ".join((*texts, *numbers, row[-1])))
    return lines
