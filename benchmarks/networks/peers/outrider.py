"""Outrider itself: compiled for this machine, in fp32 only, and free to choose where accuracy holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.networks.peers import Call, Made, Order, Peer, Precision
from benchmarks.networks.records import Candidate

_ACCURACY = "accuracy>=base-0.01"
_ROUNDS, _CALLS = 25, 200
_SHORT_NS = 1_000_000  # in calls that take longer, a few microseconds do not show


class Outrider(Peer):
    """`compile_model` for the host with real calibration, then `session.predict` or `session.run`."""

    packages: ClassVar[tuple[str, ...]] = ("outrider",)
    engine: ClassVar[tuple[str, ...]] = ()
    modules: ClassVar[tuple[str, ...]] = ("outrider.runtime.session",)
    call: ClassVar[str] = "load(bundle).predict(x), or .run(feed) where there are several inputs or outputs"
    precision: ClassVar[Precision] = "any"
    #: The precisions that the search may use; None: all.
    allowed: ClassVar[list[str] | None] = None

    _session: Any = None
    _path: Path

    def export(self, order: Order) -> Made:
        """Compile; where it is free to choose and labels are true, accuracy may fall by one point."""
        import numpy as np

        from outrider.compiler import compile_model

        out = Path(order.folder) / "host.orb"
        arrays = np.load(order.calibration)
        options: dict[str, Any] = {
            "calibration": {name: arrays[name] for name in arrays.files},
            "goals": [_ACCURACY] if order.has_labels and self.allowed is None else [],
            "precisions": self.allowed,
            "shapes": order.shapes,
            "tune_budget_s": order.tune_s,
        }
        seconds = []
        for _ in range(2 if order.again else 1):
            start = time.perf_counter()
            report = compile_model(order.onnx, target="host", out=out, name=order.net, version="1", **options)
            seconds.append(time.perf_counter() - start)
        packages = {entry.candidate: entry.package for entry in report.manifest.artifacts}
        chosen = next(record.id for record in report.candidates if record.rank == 1)
        package = packages.get(chosen)
        return Made(
            path=str(out),
            file_bytes=out.stat().st_size,
            engine=(package,) if package else (),
            seconds=seconds[0],
            seconds_cached=seconds[1] if order.again else None,
            chosen=chosen,
            candidates=tuple(_candidate(record) for record in report.candidates),
        )

    def open(self, path: Path, order: Order) -> Call:
        """A session of the bundle."""
        from outrider.runtime.session import load

        session = self._session = load(path)
        self._path = path
        outputs = [spec.name for spec in session.signature.outputs]
        if len(order.shapes) > 1 or len(outputs) > 1:
            run = session.run

            def call(feed: Any) -> Any:
                found = run(feed)
                return [found[name] for name in outputs]

            return call
        predict = session.predict

        def call_one(feed: Any) -> Any:
            (array,) = feed.values()
            return [predict(array)]

        return call_one

    def overhead_us(self, feed: Mapping[str, Any]) -> float | None:
        """The session's call by the engine's own `run`, of another engine of the same artifact; the lowest of each.

        The session's is `predict`, where there is one input. None where a call takes too long to tell.
        """
        from outrider.runtime.engines import open_engine

        session = self._session
        entry = session.artifact
        engine = open_engine(entry, session.bundle.read(entry.path), session.signature, 1)
        (first, *others) = feed.values()
        through = (lambda: session.run(feed)) if others else (lambda: session.predict(first))
        try:
            if _spent(through, 1) > _SHORT_NS:
                return None
            pairs = [(_spent(lambda: engine.run(feed), _CALLS), _spent(through, _CALLS)) for _ in range(_ROUNDS)]
        finally:
            engine.close()
        bare, whole = (min(column) for column in zip(*pairs, strict=True))
        return float(whole - bare) / 1e3


class OutriderFp32(Outrider):
    """The same search, in fp32 only."""

    call: ClassVar[str] = 'compile_model(..., precisions=["fp32"]), called as above'
    precision: ClassVar[Precision] = "fp32"
    allowed: ClassVar[list[str] | None] = ["fp32"]


def _spent(call: Callable[[], object], count: int) -> float:
    """CPU time of a call, ns, after one that is not timed."""
    call()
    start = time.process_time_ns()
    for _ in range(count):
        call()
    return (time.process_time_ns() - start) / count


def _candidate(record: Any) -> Candidate:
    """A record of the compile's report, with the time of its smallest batch."""
    smallest = min(record.measured, key=lambda found: found.batch, default=None)
    return Candidate(
        id=record.id,
        backend=record.backend,
        precision=record.precision,
        outcome=record.outcome,
        reason=record.reason,
        size=record.size,
        ms_min=None if smallest is None else round(smallest.ns_per_row_min * smallest.batch / 1e6, 5),
        error=None if record.parity is None else record.parity.max_abs_error,
    )
