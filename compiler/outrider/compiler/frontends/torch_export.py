"""Exporting a module by torch.export: with which arrays, and which of their sizes are left free.

Axis 0 counts rows in most modules, so a few rows are tried first, their number free. Where a module does not take
these, or fixes their number, it is exported for one row; or else it takes whole calls, as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outrider.compiler.frontends import ReadOptions
from outrider.compiler.frontends.torch_errors import first_line, untraceable
from outrider.compiler.frontends.torch_program import (
    Program,
    check_stateless,
    device_of,
    evaluating,
    program_of,
    run_eagerly,
    tensor_of,
)
from outrider.compiler.frontends.torch_quiet import quiet
from outrider.compiler.model import LABEL, Array
from outrider.runtime.errors import BadDataError, BadModelError, UnsupportedError

_ROWS = 2  # the fewest that torch.export does not take for a constant
Sizes = Mapping[str, Sequence[int | None]]


@dataclass(frozen=True)
class Attempt:
    """One way to export: arrays by argument, which of their axes to leave free, which of these must come out free.

    `rows`: axis 0 must come out free too, or the attempt has failed.
    """

    arrays: Mapping[str, Array]
    free: Mapping[str, frozenset[int]]
    asked: Mapping[str, frozenset[int]]
    rows: bool


def attempts(module: Any, options: ReadOptions) -> Iterator[Attempt]:
    """Ways to export, best first, whose arrays the module takes.

    Raises BadDataError where it takes none, BadModelError where there is nothing to export with.
    """
    _check_initialised(module)
    given = _arrays(module, options)
    if any(name in given and given[name].ndim == len(sizes) + 1 for name, sizes in options.shapes.items()):
        given = {name: array[0] for name, array in given.items()}  # calls, side by side
    for name, sizes in options.shapes.items():
        _check_sizes(name, sizes, given)
    refused: list[Exception] = []

    def takes(arrays: Mapping[str, Array]) -> bool:
        try:
            _run(module, arrays)
        except UnsupportedError:
            raise
        except Exception as e:  # whatever a module raises where its input does not fit
            refused.append(e)
            return False
        return True

    ran = False
    for arrays, rows, fixed in _ways(module, given, options.shapes):
        if takes(arrays):
            ran = True
            free, asked = _axes(arrays, options.shapes, rows_fixed=fixed)
            yield Attempt(arrays, free, asked, rows)
    if not ran:
        shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in given.items())
        raise BadDataError(
            f"{type(module).__name__}.forward fails on the calibration: {first_line(refused[0])}",
            hint=f"it was given {shapes}",
        ) from refused[0]


def export(module: Any, attempt: Attempt) -> Program | None:
    """The exported program; None where axis 0 had to be free and is not.

    Raises UnsupportedError, naming what stands in the way.
    """
    import torch
    import torch.utils._pytree as pytree

    args, kwargs = _call(module, attempt.arrays)
    names = _flat_names(module, args)
    automatic = torch.export.Dim.AUTO

    def dims(name: str) -> dict[int, Any]:
        return dict.fromkeys(sorted(attempt.free[name]), automatic)

    shapes = {name: dims(name) for name in (*names, *kwargs)}
    try:
        with quiet(), evaluating(module):
            exported = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
    except Exception as e:  # of a dozen kinds, and whatever the module raises
        raise untraceable(e, module) from e
    _, named = pytree.tree_unflatten(list(range(len(names) + len(kwargs))), exported.call_spec.in_spec)
    program = program_of(exported, (*names, *named))
    fixed = _fixed(program, attempt.free)
    if attempt.rows and any(axis == 0 for _, axis in fixed):
        return None
    for name, axis in fixed:
        if axis in attempt.asked[name]:
            size = attempt.arrays[name].shape[axis]
            raise UnsupportedError(
                f"axis {axis} of {name!r} cannot be left free: {type(module).__name__} fixes it at {size}",
                hint=f"bind it in shapes={{{name!r}: …}}",
            )
    return program


def _fixed(program: Program, free: Mapping[str, frozenset[int]]) -> list[tuple[str, int]]:
    """The axes that were to be free and came out fixed."""
    from torch.export.graph_signature import InputKind

    values = {node.name: node.meta.get("val") for node in program.exported.graph.nodes if node.op == "placeholder"}
    specs = [spec for spec in program.exported.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    found: list[tuple[str, int]] = []
    for leaf, spec in zip(program.leaves, specs, strict=True):
        if leaf.name is not None:
            sizes = values[spec.arg.name].shape
            found += [(leaf.name, axis) for axis in sorted(free[leaf.name]) if _is_number(sizes[axis])]
    return found


def _is_number(size: Any) -> bool:
    """Whether a size is one number, be it written as a symbol that was found to be one."""
    if isinstance(size, int):
        return True
    expression = size.node.expr
    return bool(expression.is_number)


# Arrays -----------------------------------------------------------------------------------------------------------


def _arrays(module: Any, options: ReadOptions) -> dict[str, Array]:
    """Arrays by argument, in the module's type of floats: calibration's, or such as the sizes say."""
    parameters = _parameters(module)
    needed = [one.name for one in parameters.values() if one.default is one.empty]
    examples = dict(options.examples)
    if None in examples:
        if len(needed) > 1:
            raise BadDataError(
                f"{type(module).__name__}.forward takes several inputs: {', '.join(needed)}",
                hint="give calibration as a dict of arrays",
            )
        examples = {(needed or [*parameters, "x"])[0]: examples[None]}
    if LABEL not in parameters:
        examples.pop(LABEL, None)
    unknown = [str(name) for name in (*examples, *options.shapes) if name not in parameters]
    if unknown:
        raise BadDataError(
            f"{type(module).__name__}.forward has no argument {unknown[0]!r}", hint=f"it takes {', '.join(parameters)}"
        )
    if not examples:
        return {name: _cast(array, module) for name, array in _made_up(module, needed, options.shapes).items()}
    missing = [name for name in needed if name not in examples]
    if missing:
        raise BadDataError(
            f"the calibration lacks {missing[0]!r}, which {type(module).__name__}.forward takes",
            hint=f"give one array each for {', '.join(needed)}",
        )
    found = {name: _cast(np.asarray(array), module) for name, array in examples.items() if name is not None}
    for name, array in found.items():
        if array.size == 0:
            raise BadDataError(f"the calibration for {name!r} has no rows")
    return found


def _made_up(module: Any, needed: Sequence[str], shapes: Sizes) -> dict[str, Array]:
    """Arrays of the sizes that are given: floats, or integers where the module does not take floats."""
    for name in needed or shapes:
        if name not in shapes or None in tuple(shapes[name])[1:]:
            raise BadModelError(
                f"nothing says what {type(module).__name__}.forward takes as {name!r}",
                hint=f"give calibration, or all sizes: --shape {name}=1,…",
            )
    sizes = {name: tuple(size or _ROWS for size in shapes[name]) for name in shapes}
    rng = np.random.default_rng(0)
    floats: dict[str, Array] = {name: rng.standard_normal(shape, np.float32) for name, shape in sizes.items()}
    integers: dict[str, Array] = {name: np.zeros(shape, np.int64) for name, shape in sizes.items()}
    for arrays in (floats, integers):
        try:
            _run(module, {name: _cast(array, module) for name, array in arrays.items()})
        except Exception:  # noqa: S112 - whatever a module raises where its input does not fit
            continue
        return arrays
    return floats


def _cast(array: Array, module: Any) -> Array:
    """Floats in the type of the module's weights; float32 where it has none."""
    import torch

    if array.dtype.kind != "f":
        return array
    floats = (tensor.dtype for tensor in module.parameters() if tensor.is_floating_point())
    dtype = {torch.float16: np.float16, torch.float64: np.float64}.get(next(floats, torch.float32), np.float32)
    return array.astype(dtype)


def _check_sizes(name: str, sizes: Sequence[int | None], arrays: Mapping[str, Array]) -> None:
    """Raises BadDataError where sizes that are bound are not those of the array; axis 0 is cut to size."""
    if name not in arrays:
        raise BadDataError(f"there are sizes for {name!r}, but no array", hint="give calibration for it")
    shape = arrays[name].shape
    fits = len(shape) == len(sizes) and all(
        size in (None, has) for size, has in zip(tuple(sizes)[1:], shape[1:], strict=True)
    )
    if not fits:
        expected = ", ".join("n" if size is None else str(size) for size in sizes)
        raise BadDataError(f"the calibration for {name!r} has the shape {shape}, its sizes are given as ({expected})")


def _ways(module: Any, given: Mapping[str, Array], shapes: Sizes) -> Iterator[tuple[dict[str, Array], bool, bool]]:
    """Arrays to try; whether their axis 0 has to come out free; whether it is to be fixed."""
    firsts = {name: tuple(sizes)[:1] for name, sizes in shapes.items()}
    bound = {name: first[0] for name, first in firsts.items() if first and first[0] is not None}
    if bound:
        together = len({len(array) for array in given.values() if array.ndim}) == 1
        other = max(bound.values()) if together else None
        yield {name: _rows(array, bound.get(name, other)) for name, array in given.items()}, False, True
        return
    few: dict[str, Array] = {}
    if all(array.ndim for array in given.values()):
        few = {name: _rows(array, _ROWS) for name, array in given.items()}
        yield few, True, False
        if _by_row(module, few):
            yield {name: _rows(array, 1) for name, array in given.items()}, False, True
            return
    yield dict(given), False, False
    if all(array.ndim > 1 for array in given.values()):
        yield {name: np.ascontiguousarray(array[0]) for name, array in given.items()}, False, False
    if few:
        yield few, False, True


def _by_row(module: Any, few: Mapping[str, Array]) -> bool:
    """Whether the module gives for each row by itself what it gives for it among others."""
    import torch
    import torch.utils._pytree as pytree

    def results(arrays: Mapping[str, Array]) -> list[Any]:
        leaves = pytree.tree_leaves(run_eagerly(module, *_call(module, arrays)))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    try:
        together = results(few)
        singles = [results({name: array[row : row + 1] for name, array in few.items()}) for row in range(_ROWS)]
        return all(
            torch.allclose(torch.cat([single[place] for single in singles]), whole, 1e-3, 1e-4, equal_nan=True)
            for place, whole in enumerate(together)
        )
    except Exception:  # whatever a module raises that takes no single row
        return False


def _rows(array: Array, count: int | None) -> Array:
    """So many rows; the first ones again where there are too few. None: all of them."""
    if array.ndim == 0 or count is None:
        return array
    return np.ascontiguousarray(np.resize(array, (count, *array.shape[1:])) if len(array) < count else array[:count])


def _axes(
    arrays: Mapping[str, Array], shapes: Sizes, *, rows_fixed: bool
) -> tuple[dict[str, frozenset[int]], dict[str, frozenset[int]]]:
    """The axes to leave free by argument, and those of them that the caller asked for."""
    asked = {
        name: frozenset(axis for axis, size in enumerate(shapes.get(name, ())) if axis and size is None)
        for name in arrays
    }
    first = frozenset(() if rows_fixed else (0,))
    return {name: asked[name] | (first if array.ndim else frozenset()) for name, array in arrays.items()}, asked


# Calls ------------------------------------------------------------------------------------------------------------


def _parameters(module: Any) -> dict[str, inspect.Parameter]:
    """What forward takes, by name; without `*args` and `**kwargs`, whose sizes torch.export leaves free nowhere."""
    found = inspect.signature(module.forward).parameters
    return {name: one for name, one in found.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}


def _call(module: Any, arrays: Mapping[str, Array]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments as far as there is no gap, then named ones; as tensors where the module is."""
    device = device_of(module)
    left = {name: tensor_of(array).to(device) for name, array in arrays.items()}
    args: list[Any] = []
    for name, one in _parameters(module).items():
        if one.kind is one.KEYWORD_ONLY or name not in left:
            break
        args.append(left.pop(name))
    return tuple(args), left


def _flat_names(module: Any, args: Sequence[Any]) -> tuple[str, ...]:
    return tuple(_parameters(module))[: len(args)]


def _run(module: Any, arrays: Mapping[str, Array]) -> None:
    """Call the module once. Raises UnsupportedError where it changes its buffers, and whatever the module raises."""
    check_stateless(module, *_call(module, arrays))


def _check_initialised(module: Any) -> None:
    from torch.nn.parameter import is_lazy

    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise BadModelError(f"the weights {name!r} have no size yet", hint="run the module once, and train it")
