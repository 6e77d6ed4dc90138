"""One run of the benchmark. Read `run` first; each line is a stage."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from benchmarks.networks.children import Child, Failed, contender, make
from benchmarks.networks.flops import count_flops
from benchmarks.networks.goals import ACCURACY_LOSS, COMPILED
from benchmarks.networks.nets import Net, net
from benchmarks.networks.peaks import measure_peaks
from benchmarks.networks.peers import NotSupported, Order, installed_bytes, is_ours, peer
from benchmarks.networks.records import Cell, Entry, NetInfo, Peak, Result
from benchmarks.networks.timing import Contender, race
from benchmarks.shared.begin import Begin, Tell, peer_info

from outrider.runtime.errors import OutriderError

Save = Callable[[Result], None]

_MIB = 2**20
_CLOSE = 1e-2  # fp32: the largest error, by the largest output, of what is of use
_CLOSE_INT8 = 0.5  # int8, where no labels tell the accuracy: only what is plainly wrong


@dataclass(frozen=True)
class Plan:
    """What to run. `limit_s` bounds one net's race in CPU time, `patience_s` the making or loading by one peer."""

    nets: Sequence[str]
    peers: Sequence[str]
    limit_s: float
    patience_s: float
    tune_s: float = 0.0
    quick: bool = False


@dataclass
class _Found:
    """What a run has found so far: whole nets. `minutes`: what earlier runs took for theirs."""

    nets: list[NetInfo] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    peaks: tuple[Peak, ...] = ()
    minutes: float = 0.0

    def add(self, other: _Found | Result) -> None:
        """Take another one's nets."""
        self.nets += other.nets
        self.entries += other.entries
        self.cells += other.cells
        self.peaks = self.peaks or other.peaks
        self.minutes += other.minutes


def run(plan: Plan, tell: Tell, save: Save, earlier: Result | None = None) -> Result:
    """Make, load, race and measure all that the plan says; on Ctrl-C, give the nets that are over.

    After each net, what there is so far is saved. The nets of an earlier run are kept as they are.
    """
    found, begin = _Found(), Begin()
    if earlier is not None:
        found.add(earlier)
    known = {info.name for info in found.nets}
    try:
        tell("measuring the core's peaks", 0)
        found.peaks = found.peaks or measure_peaks()
        for number, name in enumerate(plan.nets):
            if name not in known:
                found.add(_run_net(name, plan, lambda what, over=number: tell(what, over)))
                save(_result(plan, found, begin, interrupted=True))
    except KeyboardInterrupt:
        return _result(plan, found, begin, interrupted=True)
    return _result(plan, found, begin, interrupted=False)


def _result(plan: Plan, found: _Found, begin: Begin, *, interrupted: bool) -> Result:
    return Result(
        quick=plan.quick,
        interrupted=interrupted,
        **begin.until_now(found.minutes),
        tune_s=plan.tune_s,
        peaks=found.peaks,
        peers=tuple(peer_info(name, peer(name)) for name in plan.peers),
        nets=tuple(found.nets),
        entries=tuple(found.entries),
        cells=tuple(found.cells),
    )


def _run_net(name: str, plan: Plan, tell: Callable[[str], None]) -> _Found:
    """One net: make it, let each peer convert and load it, and race them."""
    tell(f"{name}: making the net")
    try:
        subject = net(name)
    except OutriderError as e:
        return _Found(nets=[NetInfo(name=name, description="", skipped=str(e))])
    reference = [np.concatenate(column) for column in zip(*subject.reference(), strict=True)]
    info = _info(subject, reference)
    found = _Found(nets=[info])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outrider-bench-")))
        order = _order(subject, folder, plan)
        children: dict[str, Child] = {}
        for peer_name in plan.peers:
            tell(f"{name}: {peer_name} makes and loads it")
            entry, child = _enter(peer_name, order, subject, reference, info.base_accuracy, plan)
            found.entries.append(entry)
            if child is not None:
                children[peer_name] = stack.enter_context(child)
        tell(f"{name}: {len(children)} race")
        timings, lost = race({key: _contender(child) for key, child in children.items()}, limit_s=plan.limit_s)
        found.entries = [_after(one, lost, children, tell) for one in found.entries]
    for key, timing in timings.items():
        figures = {field: round(value, 6) for field, value in vars(timing).items()}
        found.cells.append(Cell(net=name, peer=key, **figures))
    return found


def _info(subject: Net, reference: list[Any]) -> NetInfo:
    return NetInfo(
        name=subject.name,
        description=subject.description,
        flops=count_flops(subject.onnx, subject.shapes),
        onnx_bytes=len(subject.onnx),
        base_accuracy=_accuracy(subject, reference),
    )


def _order(subject: Net, folder: Path, plan: Plan) -> Order:
    """The net as files."""
    onnx, calibration = folder / f"{subject.name}.onnx", folder / "calibration.npz"
    onnx.write_bytes(subject.onnx)
    labels = {} if subject.calibration_labels is None else {"label": subject.calibration_labels}
    np.savez(calibration, **subject.calibration, **labels)
    np.savez(folder / "inputs.npz", **subject.held_out)
    return Order(
        net=subject.name,
        onnx=str(onnx),
        calibration=str(calibration),
        shapes=dict(subject.shapes),
        folder=str(folder),
        has_module=subject.module is not None,
        has_labels=subject.calibration_labels is not None,
        again=subject.name == COMPILED,
        tune_s=plan.tune_s,
    )


def _enter(
    name: str, order: Order, subject: Net, reference: list[Any], base_accuracy: float | None, plan: Plan
) -> tuple[Entry, Child | None]:
    """Let one peer make its file and load it, and check its outputs."""
    rival = peer(name)
    blank = Entry(net=order.net, peer=name, precision=rival.precision, status="absent", detail="not installed")
    if rival.version() is None:
        return blank, None
    own = Path(order.folder) / name
    own.mkdir()
    mine, inputs = msgspec.structs.replace(order, folder=str(own)), Path(order.folder) / "inputs.npz"
    try:
        made = make(name, mine, plan.patience_s + plan.tune_s)
        child, outputs, rss_mb = contender(name, mine, made, inputs, plan.patience_s)
    except NotSupported as e:
        return msgspec.structs.replace(blank, status="unsupported", detail=str(e)), None
    except Failed as e:
        return msgspec.structs.replace(blank, status="failed", detail=str(e)), None
    arrays = np.load(outputs)
    results = [arrays[key] for key in arrays.files]
    chosen = next((one.precision for one in made.candidates if one.id == made.chosen), rival.precision)
    sizes = [installed_bytes(one) for one in made.engine]
    entry = msgspec.structs.replace(
        blank,
        precision="int8" if "int8" in chosen else "fp32",
        status="measured",
        detail=made.chosen,
        file_bytes=made.file_bytes,
        make_s=round(made.seconds, 2),
        cached_s=None if made.seconds_cached is None else round(made.seconds_cached, 2),
        rss_mb=round(rss_mb, 1),
        disk_mb=round(sum(size or 0 for size in sizes) / _MIB, 1),
        error=relative_error(results, reference),
        accuracy=_accuracy(subject, results),
        candidates=made.candidates,
    )
    return (entry if close_enough(entry, base_accuracy) else msgspec.structs.replace(entry, status="differs")), child


def relative_error(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    """The largest difference of any output, by that output's largest magnitude; infinite where shapes or NaN differ."""
    errors = [float("inf")] if len(found) != len(wanted) else []
    for a, b in zip(found, wanted, strict=False):
        if a.size != b.size:
            errors.append(float("inf"))
            continue
        error = np.abs(np.asarray(a, np.float64).reshape(b.shape) - b).max() / max(np.abs(b).max(), 1e-30)
        errors.append(float("inf") if np.isnan(error) else float(error))
    return max(errors)


def close_enough(entry: Entry, base_accuracy: float | None) -> bool:
    """Whether the outputs are of use: int8 may lose one point of accuracy, where that is known."""
    assert entry.error is not None
    if entry.precision == "fp32":
        return entry.error <= _CLOSE
    if base_accuracy is not None and entry.accuracy is not None:
        return entry.accuracy >= base_accuracy - ACCURACY_LOSS
    return entry.error <= _CLOSE_INT8


def _accuracy(subject: Net, outputs: Sequence[Any]) -> float | None:
    """The share of held-out samples whose label has the highest score; None where there are no true labels."""
    if subject.labels is None:
        return None
    scores = np.asarray(outputs[0]).reshape(len(subject.labels), -1)
    return float(np.mean(scores.argmax(axis=1) == subject.labels))


def _contender(child: Child) -> Contender:
    return Contender(
        loop=lambda count: int(child.ask(loop=count)["ns"]),
        calls=lambda count: list(child.ask(calls=count)["ns"]),
    )


def _after(entry: Entry, lost: dict[str, str], children: dict[str, Child], tell: Callable[[str], None]) -> Entry:
    """The entry as it is after the race: of one that failed there, and of ours with what a session adds."""
    if entry.peer in lost:
        return msgspec.structs.replace(entry, status="failed", detail=lost[entry.peer])
    if not is_ours(entry.peer) or entry.peer not in children:
        return entry
    tell(f"{entry.net}: what a session of {entry.peer} adds")
    try:
        added = children[entry.peer].ask(overhead=True)["overhead_us"]
    except Failed:
        return entry
    return msgspec.structs.replace(entry, overhead_us=None if added is None else round(added, 2))
