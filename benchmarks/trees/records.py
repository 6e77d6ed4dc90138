"""What a run of the benchmark found: plain records, written as JSON and read by the report."""

from __future__ import annotations

from typing import Literal

import msgspec
from benchmarks.shared.records import Machine, PeerInfo

#: `absent`: not installed. `unsupported`: it cannot run the model. `differs`: it gives other results than the source
#: model, so it is shown but is no rival. `own forest`: it trained one by itself.
Status = Literal["measured", "own forest", "differs", "unsupported", "absent"]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One contender on one case at one batch size: CPU time, ns a row."""

    case: str
    peer: str
    batch: int
    ns_min: float
    ns_median: float
    rounds: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One contender on one case: what became of it, how big and how slow to make it is, and its memory in MiB.

    `file_bytes` is of what it loads, `compile_s` the time to make that; `artifact_bytes` is of the code in our bundle.
    `error` is the largest difference to the source model's results.
    """

    case: str
    peer: str
    status: Status
    detail: str = ""
    file_bytes: int | None = None
    artifact_bytes: int | None = None
    compile_s: float | None = None
    compile_peak_mb: float | None = None
    import_mb: float | None = None
    load_mb: float | None = None
    error: float | None = None


class CaseInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One model; `skipped` says why it was not there."""

    name: str
    shape: str
    description: str
    skipped: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run; `interrupted`: it was stopped by Ctrl-C and holds what there was."""

    date: str
    quick: bool
    interrupted: bool
    minutes: float
    machine: Machine
    peers: tuple[PeerInfo, ...]
    cases: tuple[CaseInfo, ...]
    entries: tuple[Entry, ...]
    cells: tuple[Cell, ...]


__all__ = ["CaseInfo", "Cell", "Entry", "Machine", "PeerInfo", "Result", "Status"]
