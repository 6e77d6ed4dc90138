"""Channels last: convolutions whose innermost dimension is the channel, which is what vectors run over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tvm

_LAYOUTS = {"relax.nn.conv2d": ["NHWC", "HWIO"]}


def channels_last(mod: tvm.IRModule) -> tvm.IRModule:
    """Convolutions in NHWC with HWIO weights, what lies between them alike, and transposed constants folded."""
    from tvm import relax, transform

    passes = transform.Sequential(
        [relax.transform.ConvertLayout(_LAYOUTS), relax.transform.Normalize(), relax.transform.CanonicalizeBindings()]
    )
    return relax.transform.DeadCodeElimination()(fold_rearranged(passes(mod)))


def fold_rearranged(mod: tvm.IRModule) -> tvm.IRModule:
    """Constants transposed and reshaped now, in numpy: TVM would compile a program for each."""
    import tvm
    from tvm import relax

    permute, reshape = (tvm.ir.Op.get(f"relax.{name}") for name in ("permute_dims", "reshape"))

    @relax.expr_functor.mutator
    class Fold(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if call.op not in (permute, reshape):
                return call
            value = constant_of(call.args[0], self.lookup_binding)
            shape = fixed_shape(call)
            if value is None or shape is None:
                return call
            if call.op == permute:
                axes = None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes]
                value = np.transpose(value, axes)
            return relax.const(np.ascontiguousarray(value).reshape(shape), str(value.dtype))

    folder = Fold(mod)
    main = folder.visit_expr(mod["main"])
    made = folder.builder_.get()
    made.update_func(made.get_global_var("main"), main)
    return made


def fixed_shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor; None where a dimension is free or unknown."""
    shape = getattr(value.ty, "shape", None)
    try:
        return None if shape is None else tuple(int(size) for size in shape)
    except TypeError:
        return None


def constant_of(value: Any, lookup: Any) -> Any:
    """The value of a constant, or of a variable that is bound to one, as a numpy array; None for anything else."""
    import tvm
    from tvm import relax

    if isinstance(value, relax.Var):
        value = lookup(value)
    return value.value.numpy() if isinstance(value, tvm.ir.GenericConst) else None
