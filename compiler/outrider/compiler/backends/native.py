"""Forests as native code: data tables and fixed C kernels, in one library that needs nothing on the device.

For WebAssembly the same sources become a module, which needs an engine there and nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from outrider.compiler.backends import OWN, Built, Candidate, Order, Workbench, artifact_entry
from outrider.compiler.model import Model, OnnxGraph
from outrider.compiler.trees import select
from outrider.compiler.trees.emit import artifact_sources
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import BASELINE, ISA_LEVELS, IsaLevel, Kernel, KernelSource, Role, kernel
from outrider.compiler.trees.narrow import Narrowing, block_rows, narrow
from outrider.compiler.trees.select import Part, Plan
from outrider.runtime.target import Requirements, Target
from outrider.targets.toolchain import build_shared

_QUICK_S = 1.0  # the longest build after which other options are tried


class NativeBackend:
    """A candidate is a plan: a kernel for single rows, one for batches, and the instruction-set level of both."""

    isolated = False
    precisions = OWN
    tools = ("treelite", "ziglang")

    def __init__(self) -> None:
        self._kernels: dict[str, Kernel] = {}
        self._narrowed: tuple[Model, Narrowing] | None = None

    def refuses(self, order: Order) -> str | None:
        """Anything but a forest."""
        payload = order.model.payload
        if isinstance(payload, OnnxGraph):
            return f"the graph is not read as a tree ensemble, which is what this backend compiles: {payload.no_forest}"
        return None

    def explore(self, order: Order, bench: Workbench) -> None:
        """What cost models leave; the best two together; then other options of theirs, where builds are quick."""
        model, target = order.model, order.target
        forest = self._forest(model)
        plans = select.first(forest, target, self._kernel)
        seconds = bench.build(self._offer(model, plans))
        best = plans[0]
        if len(plans) > 1:
            times = bench.times()
            alone = zip(plans, self._offer(model, plans), strict=True)
            known = {plan: times[candidate.id] for plan, candidate in alone if candidate.id in times}
            if not select.serve_both(self._kernel, known):
                return
            best = select.together(self._kernel, known)
            seconds = max(seconds, bench.build(self._offer(model, [best])))
        if 0 < seconds <= _QUICK_S:
            bench.build(self._offer(model, select.variants(best, forest, target, self._kernel)))

    def rule(self, order: Order) -> Sequence[Candidate]:
        """One an instruction-set level."""
        model, target = order.model, order.target
        return self._offer(model, select.rule(self._forest(model), target, self._kernel))

    def recall(self, order: Order, precision: str, options: Mapping[str, str]) -> Candidate | None:
        """Kernels that take the forest, with options of theirs, at the level that they need."""
        model, target = order.model, order.target
        plan = select.recognise(options, self._forest(model), target, self._kernel)
        return None if plan is None else self._offer(model, [plan])[0]

    def faithful(self, order: Order) -> Candidate | None:
        """K2, which adds as the source does."""
        model, target = order.model, order.target
        return self._offer(model, [select.plainest(self._forest(model), target, self._kernel)])[0]

    def build(self, order: Order, candidate: Candidate) -> Built:
        """Lay out, emit, compile for the level of the candidate."""
        plan = _plan(candidate)
        return self._build(order.model, candidate, plan, order.target, ISA_LEVELS[plan.isa])

    def twin(self, order: Order, candidate: Candidate, host: Target) -> Built | None:
        """The sources are portable where those of both kernels are; the twin is for this machine's baseline."""
        plan, model = _plan(candidate), order.model
        portable = all(self._emit(self._forest(model), part).portable for part in (plan.row, plan.batch))
        return self._build(model, candidate, plan, host, ISA_LEVELS[BASELINE]) if portable else None

    def _build(self, model: Model, candidate: Candidate, plan: Plan, target: Target, level: IsaLevel) -> Built:
        forest = self._forest(model)
        row, batch = self._emit(forest, plan.row), self._emit(forest, plan.batch)
        sources = artifact_sources(forest, row, batch, plan.crossover, self._narrowing(model))
        wasm = target.arch == "wasm32"
        file = "model.wasm" if wasm else "model.so"
        with tempfile.TemporaryDirectory(prefix="outrider-native-") as folder:
            data = build_shared(sources, Path(folder, file), target, level.flags)
        needs = Requirements(
            arch=None if wasm else target.arch,  # a module runs wherever its engine does
            features=tuple(dict.fromkeys((*_baseline(target), *level.features))),
            memory_bytes=len(data) + max(row.scratch, batch.scratch) + 4 * forest.features * block_rows(forest),
        )
        kind, package = ("wasm", "wasmtime") if wasm else ("native", None)
        entry = artifact_entry(
            model, candidate, data, file=file, kind=kind, package=package, triple=target.triple, needs=needs
        )
        return Built(candidate, data, entry)

    def _offer(self, model: Model, plans: Iterable[Plan]) -> list[Candidate]:
        """Plans as candidates."""
        precision = {"float32": "fp32", "float64": "fp64"}[self._forest(model).precision]
        return [Candidate("native", precision, plan.options(), self._part(plan)) for plan in plans]

    def _part(self, plan: Plan) -> Role | None:
        """The role that a kernel alone cannot do without another; None for what can be shipped."""
        serves = self._kernel(plan.row.kernel).serves
        return next(iter(serves)) if plan.row == plan.batch and len(serves) == 1 else None

    def _emit(self, forest: Forest, part: Part) -> KernelSource:
        return self._kernel(part.kernel).emit(forest, dict(part.options))

    def _forest(self, model: Model) -> Forest:
        """The forest as kernels see it."""
        return self._narrowing(model).forest

    def _narrowing(self, model: Model) -> Narrowing:
        """How the model's rows are narrowed, found once."""
        if self._narrowed is None or self._narrowed[0] is not model:
            assert isinstance(model.payload, Forest)
            self._narrowed = model, narrow(model.payload, model.decides_in)
        return self._narrowed[1]

    def _kernel(self, name: str) -> Kernel:
        """The kernel of that name, one instance for all candidates, which share its layouts."""
        if name not in self._kernels:
            self._kernels[name] = kernel(name)
        return self._kernels[name]


def _plan(candidate: Candidate) -> Plan:
    plan = select.read_plan(candidate.options)
    assert plan is not None
    return plan


def _baseline(target: Target) -> tuple[str, ...]:
    """The ISA features that the toolchain's baseline CPU of this architecture uses, a subset of any such target's."""
    from outrider.targets import board_of

    return board_of(target).features
