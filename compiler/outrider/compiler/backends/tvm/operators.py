"""Convolutions and matrix products by constants, stated so that schedules can make the most of them.

Weights lie in panels: all that a block of output channels needs, in the order of its use, a panel's channels innermost.
Blocks have names, by which `schedules.py` knows them: PADDED, CONVOLUTION, DEPTHWISE and PRODUCT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.compiler.backends.tvm.layout import constant_of, fixed_shape
from outrider.compiler.backends.tvm.machine import Machine

if TYPE_CHECKING:
    import tvm

PADDED, CONVOLUTION, DEPTHWISE, PRODUCT = "padded", "convolution", "depthwise", "product"
_PANEL = (2, 3, 4, 5, 6, 7, 1)  # vectors of a panel, the best first


def state_operators(mod: tvm.IRModule, machine: Machine) -> tvm.IRModule:
    """Replace what can be stated so; all else is left to TVM's own legalisation."""
    import tvm
    from tvm import relax

    conv2d, matmul = (tvm.ir.Op.get(f"relax.{name}") for name in ("nn.conv2d", "matmul"))

    @relax.expr_functor.mutator
    class State(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if call.op not in (conv2d, matmul) or fixed_shape(call.args[1]) is None:
                return call
            weights = constant_of(call.args[1], self.lookup_binding)
            if weights is None or str(weights.dtype) != "float32" or str(call.ty.dtype) != "float32":
                return call
            stated = (_convolution if call.op == conv2d else _product)(call, weights, machine)
            if stated is None:
                return call
            compute, packed, name = stated
            return self.builder_.call_te(compute, call.args[0], relax.const(packed, "float32"), primfunc_name_hint=name)

    stater = State(mod)
    main = stater.visit_expr(mod["main"])
    made = stater.builder_.get()
    made.update_func(made.get_global_var("main"), main)
    return made


def panel_width(channels: int, lanes: int) -> int:
    """How many of the output channels share a panel: vectors' worth of them, or of halves where that does not fit."""
    for vector in (lanes, lanes // 2, lanes // 4):
        for count in _PANEL:
            if vector >= 1 and channels % (vector * count) == 0:
                return vector * count
    return channels if channels <= 4 * lanes else 1


def _convolution(call: Any, weights: Any, machine: Machine) -> Any:
    """A dense or a depthwise convolution; None for one in groups, or not in NHWC."""
    attrs = call.attrs
    if (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) != ("NHWC", "HWIO", "NHWC"):
        return None
    shape = call.args[0].ty.shape
    height, width, taken = weights.shape[0], weights.shape[1], int(shape[3])
    strides, dilation, groups = [int(v) for v in attrs.strides], [int(v) for v in attrs.dilation], int(attrs.groups)
    padding = [int(v) for v in attrs.padding]
    given = weights.shape[3]
    if groups == 1:
        panel = panel_width(given, machine.lanes)
        packed = weights.reshape(height, width, taken, given // panel, panel).transpose(3, 0, 1, 2, 4)
    elif groups == taken == given:
        packed = weights.reshape(height, width, given)
    else:
        return None

    def compute(x: Any, w: Any) -> Any:
        from tvm import te

        n, rows, columns, _ = call.ty.shape
        padded = _padded(x, padding)
        kh, kw = te.reduce_axis((0, height), "kh"), te.reduce_axis((0, width), "kw")
        (sy, sx), (dy, dx) = strides, dilation
        if groups != 1:
            return te.compute(
                (n, rows, columns, given),
                lambda b, i, j, c: te.sum(padded[b, i * sy + kh * dy, j * sx + kw * dx, c] * w[kh, kw, c], [kh, kw]),
                name=DEPTHWISE,
            )
        k = te.reduce_axis((0, taken), "k")
        return te.compute(
            (n, rows, columns, given),
            lambda b, i, j, c: te.sum(
                padded[b, i * sy + kh * dy, j * sx + kw * dx, k] * w[c // panel, kh, kw, k, c % panel], [kh, kw, k]
            ),
            name=CONVOLUTION,
        )

    return compute, np.ascontiguousarray(packed), CONVOLUTION if groups == 1 else DEPTHWISE


def _padded(x: Any, padding: list[int]) -> Any:
    """The tensor in a border of zeros: `padding` is that of the top, left, bottom and right."""
    import tvm
    from tvm import te

    if not any(padding):
        return x
    top, left, bottom, right = padding
    n, rows, columns, channels = x.shape

    def value(b: Any, i: Any, j: Any, c: Any) -> Any:
        inside = [
            *([i >= top] if top else []),
            *([i < rows + top] if bottom else []),
            *([j >= left] if left else []),
            *([j < columns + left] if right else []),
        ]
        zero = tvm.tirx.const(0, str(x.dtype))
        return tvm.tirx.if_then_else(tvm.tirx.all(*inside), x[b, i - top, j - left, c], zero)

    return te.compute((n, rows + top + bottom, columns + left + right, channels), value, name=PADDED)


def _product(call: Any, weights: Any, machine: Machine) -> Any:
    """A product by a constant matrix; None where the left side is no matrix or stack of them."""
    if weights.ndim != 2 or len(call.args[0].ty.shape) < 2:
        return None
    taken, given = weights.shape
    panel = panel_width(given, machine.lanes)
    packed = weights.reshape(taken, given // panel, panel).transpose(1, 0, 2)

    def compute(x: Any, w: Any) -> Any:
        from tvm import te

        k = te.reduce_axis((0, taken), "k")
        return te.compute(
            (*x.shape[:-1], given),
            lambda *at: te.sum(x[(*at[:-1], k)] * w[at[-1] // panel, k, at[-1] % panel], [k]),
            name=PRODUCT,
        )

    return compute, np.ascontiguousarray(packed), PRODUCT
