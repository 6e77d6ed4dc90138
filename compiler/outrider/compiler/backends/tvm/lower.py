"""A module of Relax -> loops: operators stated, the rest legalised, elementwise work fused into what it follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from outrider.compiler.backends.tvm.layout import channels_last
from outrider.compiler.backends.tvm.machine import Machine
from outrider.compiler.backends.tvm.operators import state_operators

if TYPE_CHECKING:
    import tvm

_ALIGNED = '"data_alignment":64'
_UNALIGNED = '"data_alignment":1'


@dataclass(frozen=True)
class Loops:
    """One function of loops, unscheduled: its name in the module, and how often a run calls it."""

    name: str
    function: Any
    calls: int

    @cached_property
    def flops(self) -> float:
        """Multiplications and additions of one call, or 0 where a dimension is free."""
        import tvm

        try:
            return float(tvm.s_tir.analysis.estimate_tir_flops(tvm.IRModule({"main": self.function})))
        except Exception:  # a free dimension has no number
            return 0.0


def lower(mod: tvm.IRModule, machine: Machine) -> tvm.IRModule:
    """Lay out, state, legalise, fold and fuse. No function of loops relies on the alignment of what it is given."""
    from tvm import relax, transform

    mod = state_operators(channels_last(mod), machine)
    with machine.target():
        mod = transform.Sequential(
            [
                relax.transform.LegalizeOps(),
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FoldConstant(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
                relax.transform.DeadCodeElimination(),
            ]
        )(mod)
    return _relying_on_no_alignment(mod)


def loops(mod: tvm.IRModule) -> Iterator[Loops]:
    """The functions of loops in a lowered module, in the order of their names."""
    import tvm

    counts = _calls(mod)
    for variable in sorted(mod.functions, key=lambda one: str(one.name_hint)):
        function = mod[variable]
        if isinstance(function, tvm.tirx.PrimFunc):
            name = str(variable.name_hint)
            yield Loops(name, function, counts.get(name, 0))


def _calls(mod: tvm.IRModule) -> dict[str, int]:
    """How often `main` calls each function of loops."""
    import tvm
    from tvm import relax

    call_tir = tvm.ir.Op.get("relax.call_tir")
    counts: dict[str, int] = {}

    def visit(node: Any) -> None:
        if isinstance(node, relax.Call) and node.op == call_tir:
            name = str(node.args[0].name_hint)
            counts[name] = counts.get(name, 0) + 1

    relax.analysis.post_order_visit(mod["main"], visit)
    return counts


def _relying_on_no_alignment(mod: tvm.IRModule) -> tvm.IRModule:
    """Loops for tensors that may begin at any address: numpy aligns to 16 bytes, and TVM would rely on 64."""
    import tvm

    for variable, function in list(mod.functions.items()):
        if isinstance(function, tvm.tirx.PrimFunc):
            text = tvm.ir.save_json(function)
            mod.update_func(variable, tvm.ir.load_json(text.replace(_ALIGNED, _UNALIGNED)))
    return mod
