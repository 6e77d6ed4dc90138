"""What a run of the benchmark found: plain records, written as JSON and read by the report."""

from __future__ import annotations

from typing import Literal

import msgspec
from benchmarks.shared.records import Machine, PeerInfo

#: `absent`: not installed. `unsupported`: it cannot run the net. `differs`: its outputs are too far from torch's to
#: be of use, so it is shown but is no rival. `failed`: it crashed or took too long.
Status = Literal["measured", "differs", "unsupported", "failed", "absent"]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate of a compile's report. `ms_min` is CPU time of a call as the search measured it."""

    id: str
    backend: str
    precision: str
    outcome: str
    reason: str
    size: int | None
    ms_min: float | None
    error: float | None


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One contender on one net, batch 1, ms: CPU time over `rounds` loops, wall time over `calls` single calls."""

    net: str
    peer: str
    cpu_min: float
    cpu_p50: float
    rounds: int
    wall_p50: float
    wall_p99: float
    calls: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One contender on one net: what became of it, and what it costs beside time.

    `error`: the largest difference to torch's outputs by their largest magnitude. `accuracy`: on held-out samples,
    where labels are true. `rss_mb`: resident memory of a fresh process after its first call, over Python with numpy.
    `disk_mb`: the installed engine packages, without what they depend on. Sizes in MiB but `file_bytes`. `overhead_us`:
    of the session over the engine.
    """

    net: str
    peer: str
    precision: str
    status: Status
    detail: str = ""
    file_bytes: int | None = None
    make_s: float | None = None
    cached_s: float | None = None
    rss_mb: float | None = None
    disk_mb: float | None = None
    error: float | None = None
    accuracy: float | None = None
    overhead_us: float | None = None
    candidates: tuple[Candidate, ...] = ()


class NetInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One net; `skipped` says why it was not there.

    `flops`: operations of one call, 2 for a multiply and an add. `base_accuracy`: torch's own, where labels are true.
    """

    name: str
    description: str
    flops: int = 0
    onnx_bytes: int = 0
    base_accuracy: float | None = None
    skipped: str = ""


class Peak(msgspec.Struct, frozen=True, kw_only=True):
    """The most that one core does: `name` is fp32, int8 or int8-tiles; `gops` None where `reason` says why not."""

    name: str
    gops: float | None
    reason: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run; `interrupted`: it was stopped by Ctrl-C and holds what there was.

    `tune_s`: what each compile could spend on tuning.
    """

    date: str
    quick: bool
    interrupted: bool
    minutes: float
    machine: Machine
    tune_s: float = 0.0
    peaks: tuple[Peak, ...]
    peers: tuple[PeerInfo, ...]
    nets: tuple[NetInfo, ...]
    entries: tuple[Entry, ...]
    cells: tuple[Cell, ...]


__all__ = ["Candidate", "Cell", "Entry", "Machine", "NetInfo", "Peak", "PeerInfo", "Result", "Status"]
