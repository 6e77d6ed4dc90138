"""ONNX models by TVM: one library, whose loops run as tuning on this machine found them fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from outrider.compiler.backends import Built, Candidate, Order, Workbench, artifact_entry, row_shapes
from outrider.compiler.backends.graphs import NO_GRAPH
from outrider.compiler.backends.tvm.build import build_network, requirements, tune_network
from outrider.compiler.backends.tvm.machine import machine_for
from outrider.compiler.backends.tvm.records import Records
from outrider.compiler.backends.tvm.tune import Budget
from outrider.compiler.model import OnnxGraph
from outrider.runtime.errors import UnsupportedError
from outrider.runtime.target import Target

UNTUNED = "untuned, not eligible"
_SLACK_S = 120.0  # beyond the budget: for importing TVM, lowering, and the trial that runs


class TvmBackend:
    """One candidate, in the model's own precision. Batched models are compiled for one row at a time."""

    isolated = True
    precisions = ("fp32",)
    tools = ("onnx", "apache-tvm", "apache-tvm-ffi", "ziglang")

    def refuses(self, order: Order) -> str | None:
        """Anything but an ONNX graph of fixed sizes, what TVM makes no code for, and what nothing tuned.

        For another machine nothing can be tuned here. Schedules are then by rule, for a caller who names this backend:
        devices measure what they get.
        """
        model, signature = order.model, order.model.signature
        if not isinstance(model.payload, OnnxGraph):
            return NO_GRAPH
        if find_spec("tvm") is None:
            return "the package apache-tvm is not installed: pip install 'outrider[tvm]'"
        try:
            machine_for(order.target)
        except UnsupportedError as e:
            return e.message
        for spec in signature.inputs:
            free = spec.shape[1:] if signature.batched else spec.shape
            if None in free:
                return f"TVM needs every size of the input {spec.name!r} fixed: bind it by a shape"
        if order.on_host:
            known = order.tuning.get("tvm") is not None or order.tune_s > 0
            return None if known else f"{UNTUNED}: there are no tuning records; give --tune SECONDS"
        named = order.backends is not None and "tvm" in order.backends
        return None if named else f"{UNTUNED}: this machine cannot tune for another; name it by --backend tvm"

    def explore(self, order: Order, bench: Workbench) -> None:
        """Tune for as long as is asked for, then build."""
        if order.tune_s > 0:
            bench.tune("tvm", "outrider.compiler.backends.tvm.backend:tuned", seconds=order.tune_s + _SLACK_S)
        bench.build([Candidate("tvm")])

    def rule(self, order: Order) -> Sequence[Candidate]:
        """The one candidate."""
        return [Candidate("tvm")]

    def recall(self, order: Order, precision: str, options: Mapping[str, str]) -> Candidate | None:
        """The one candidate."""
        return Candidate("tvm") if precision == "fp32" and not options else None

    def faithful(self, order: Order) -> Candidate | None:
        """There is no other way of computing in TVM."""
        return None

    def build(self, order: Order, candidate: Candidate) -> Built:
        """Compile with the records that there are, and by rule where there are none."""
        return self._build(order, candidate, order.target)

    def twin(self, order: Order, candidate: Candidate, host: Target) -> Built | None:
        """The same network, compiled for this machine."""
        return self._build(order, candidate, host)

    def _build(self, order: Order, candidate: Candidate, target: Target) -> Built:
        model = order.model
        assert isinstance(model.payload, OnnxGraph)
        data, used = build_network(model.payload.data, target, _records(order), shapes=row_shapes(model))
        entry = artifact_entry(
            model,
            candidate,
            data,
            file="model.so",
            kind="tvm",
            package="apache-tvm",
            triple=target.triple,
            needs=requirements(target, len(data)),
            rows=1 if model.signature.batched else None,
        )
        return Built(candidate, data, entry, tuning=used.encode() if used.found else None)


def tuned(order: Order) -> bytes:
    """Records of this model's loops, for this machine, with those that there are already."""
    assert isinstance(order.model.payload, OnnxGraph)
    found = tune_network(
        order.model.payload.data,
        order.target,
        shapes=row_shapes(order.model),
        records=_records(order),
        budget=Budget(seconds=order.tune_s),
    )
    return found.records.encode()


def _records(order: Order) -> Records:
    known = order.tuning.get("tvm")
    return Records.decode(known) if known else Records()
