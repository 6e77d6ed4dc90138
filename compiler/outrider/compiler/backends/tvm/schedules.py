"""Schedules: how the loops of a function run, by hand for what takes the time, by rule for the rest.

A convolution or product keeps a tile of its output in registers while it runs over the reduction:

```
for rows of a band, panel of channels, row, column:      the outer loops, in one of two orders
    tile[y, x, v] = 0                                    registers
    for kh, kw, k:                                       k unrolled `k` times
        tile[y, x, v] += input[y, x, k] * panel[k, v]    a broadcast times a vector, unrolled
    output[y, x, v] = elementwise(tile[y, x, v])
```

A depthwise convolution does the same with `input[y, x, v]`, and kh and kw unrolled. A `Choice` says how large all this
is; which is the best is found by measuring (`tune.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from outrider.compiler.backends.tvm.machine import Machine
from outrider.compiler.backends.tvm.operators import CONVOLUTION, DEPTHWISE, PADDED, PRODUCT

VERSION = 1
"""Of what the same choice means: records of another version are not replayed."""

_REDUCTIONS = {CONVOLUTION: 3, DEPTHWISE: 2, PRODUCT: 1}  # loops of each kind
_SPARE = 4  # registers that a tile leaves for what it is computed from
_UNROLL = (1, 2, 4, 8)


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of a schedule.

    `y`, `x`, `vectors`: the tile, in rows, columns and vectors. `k`: steps of the reduction that are unrolled. `band`:
    rows that all panels are computed for before the next, 0 for all. `panel`: channels of a depthwise panel. `border`:
    where zeros around the input are put: in a copy of all of it, of a band (and its panel, for depthwise), or nowhere,
    by a condition at each read.
    """

    y: int = 1
    x: int = 1
    vectors: int = 1
    k: int = 1
    band: int = 0
    panel: int = 0
    border: Literal["whole", "band", "read"] = "whole"


@dataclass(frozen=True)
class Shape:
    """What the choices for a function depend on: its kind, the output [rows, columns, channels], and the reduction.

    `depth` is the length of the innermost reduction, `panel` the channels of a panel of weights; `bordered` tells
    whether zeros are put around the input.
    """

    kind: str
    rows: int
    columns: int
    channels: int
    depth: int
    panel: int
    bordered: bool


def shape_of(function: Any) -> Shape | None:
    """The shape of a convolution or product; None for other functions, and where rows or columns are free."""
    from tvm import s_tir

    schedule = s_tir.Schedule(function)
    blocks = _blocks(schedule)
    kind = next((name for name in (CONVOLUTION, DEPTHWISE, PRODUCT) if name in blocks), None)
    if kind is None:
        return None
    extents = [_extent(schedule, loop) for loop in schedule.get_loops(blocks[kind])]
    spatial = len(extents) - _REDUCTIONS[kind]
    rows = 1 if kind == PRODUCT else extents[spatial - 3]
    columns, channels, depth = extents[spatial - 2], extents[spatial - 1], extents[-1]
    if rows is None or columns is None or channels is None or depth is None:
        return None
    panel = 0 if kind == DEPTHWISE else int(function.params[1].shape[-1])
    return Shape(kind, rows, columns, channels, depth, panel, PADDED in blocks)


def choices(shape: Shape, machine: Machine) -> dict[str, tuple[Any, ...]]:
    """What may be chosen for each size, the rule's favourite first; `tile` stands for y, x and vectors together."""
    most = machine.registers - _SPARE
    if shape.kind == DEPTHWISE:
        taps = 9  # weights that stay in registers
        tiles = _tiles(shape, (1,), max(most - taps, 4))
        panels = _divisors(shape.channels, [n * _vector(shape.channels, machine) for n in (1, 2, 4, 8, 16)])
        borders = ("band", "read", "whole") if shape.bordered else ("whole",)
        return {"tile": tiles, "band": _bands(shape), "panel": panels, "border": borders, "k": (1,)}
    vector = _vector(shape.panel, machine)
    tiles = _tiles(shape, _divisors(shape.panel // vector, range(1, 9)), most)
    unroll = tuple(n for n in _UNROLL if shape.depth % n == 0)
    borders = ("whole", "band", "read") if shape.bordered else ("whole",)
    bands = (0,) if shape.kind == PRODUCT else (0, *(n for n in _bands(shape) if n))
    return {"tile": tiles, "band": bands, "border": borders, "k": unroll, "panel": (0,)}


def favourite(shape: Shape, machine: Machine) -> Choice:
    """What the rule chooses where nothing was measured."""
    return combine({name: values[0] for name, values in choices(shape, machine).items()})


def combine(parts: dict[str, Any]) -> Choice:
    """One choice out of one value of each of `choices`."""
    y, x, vectors = parts["tile"]
    return Choice(y, x, vectors, parts["k"], parts["band"], parts["panel"], parts["border"])


def apply(function: Any, shape: Shape | None, choice: Choice | None, machine: Machine) -> Any:
    """The function of that shape, scheduled as chosen; by rule alone where `choice` is None or does not fit it."""
    from tvm import s_tir
    from tvm.s_tir.schedule import ScheduleError

    if choice is not None and shape is not None and _fits(choice, shape):
        try:
            schedule = s_tir.Schedule(function)
            _tiled(schedule, shape, choice, machine)
        except ScheduleError:
            pass
        else:
            return schedule.mod["main"]
    try:
        schedule = s_tir.Schedule(function)
        _by_rule(schedule, machine)
    except ScheduleError:
        return function
    return schedule.mod["main"]


def _tiled(schedule: Any, shape: Shape, choice: Choice, machine: Machine) -> None:
    """The schedule of this module's docstring."""
    core, out = _inline_all_but(schedule, shape.kind)
    vector = _vector(shape.panel or shape.channels, machine)
    *outer, channel = every = schedule.get_loops(out)
    panel, within = schedule.split(channel, [None, choice.panel or shape.panel])
    group, inner, lane = schedule.split(within, [None, choice.vectors, vector])
    column, x = schedule.split(outer[-1], [None, choice.x])
    if shape.kind == PRODUCT:
        ahead, tile = outer[:-1], [x, inner]
        order = [*ahead, panel, group, column]
    else:
        bands, row, y = schedule.split(outer[-2], [None, (choice.band or shape.rows) // choice.y, choice.y])
        ahead, tile = [*outer[:-2], bands], [y, x, inner]
        order = [*ahead, panel, group, row, column]
    schedule.reorder(*order, *tile, lane)
    schedule.compute_at(core, order[-1], preserve_unit_loops=True)
    if shape.bordered:
        _border(schedule, choice, bands if shape.kind == CONVOLUTION else panel, vector)
    _register_tile(schedule, core, len(every), choice, shape)
    for loop in tile:
        schedule.unroll(loop)
    schedule.vectorize(lane)
    if machine.cores > 1:
        copied = (
            shape.kind == CONVOLUTION and shape.bordered and choice.border == "band"
        )  # between the bands and panels
        schedule.parallel(schedule.fuse(*ahead) if copied else schedule.fuse(*ahead, panel))


def _register_tile(schedule: Any, core: Any, rank: int, choice: Choice, shape: Shape) -> None:
    """Order and unroll the loops of the tile's computation, with the reduction outside of the `rank` spatial ones."""
    taken = _REDUCTIONS[shape.kind]
    inner = schedule.get_loops(core)[-taken - rank :]
    *spatial, channel = inner[:rank]
    reductions = inner[rank:]
    group, lane = schedule.split(channel, [choice.vectors, None])
    unrolled = list(reductions)
    if shape.kind != DEPTHWISE:
        steps, step = schedule.split(reductions[-1], [None, choice.k])
        reductions, unrolled = [*reductions[:-1], steps, step], [step]
    schedule.reorder(*reductions, *spatial, group, lane)
    for loop in (*unrolled, *spatial, group):
        schedule.unroll(loop)
    schedule.vectorize(lane)
    start = schedule.decompose_reduction(core, reductions[0])
    *cleared, lane = schedule.get_loops(start)[-rank - 1 :]
    for loop in cleared:
        schedule.unroll(loop)
    schedule.vectorize(lane)


def _border(schedule: Any, choice: Choice, loop: Any, vector: int) -> None:
    """Put zeros around the input, as chosen."""
    padded = schedule.get_sblock(PADDED)
    if choice.border == "read":
        schedule.compute_inline(padded)
        return
    if choice.border == "band":
        schedule.compute_at(padded, loop, preserve_unit_loops=True)
    last = schedule.get_loops(padded)[-1]
    extent = _extent(schedule, last)
    if extent is not None and extent % vector == 0:
        schedule.vectorize(schedule.split(last, [None, vector])[1])


def _inline_all_but(schedule: Any, kind: str) -> tuple[Any, Any]:
    """Inline what is computed after the block `kind` into the last; that block, and the one that writes the result."""
    names = list(_blocks(schedule))
    core = schedule.get_sblock(kind)
    (out,) = schedule.get_output_blocks("root")
    last = schedule.get(out).name_hint
    for name in names:
        if name not in (kind, last, PADDED):
            schedule.compute_inline(schedule.get_sblock(name))
    if last == kind:
        out = schedule.cache_write(core, 0, "global")
    return core, out


def _by_rule(schedule: Any, machine: Machine) -> None:
    """Inline what can be, run vectors over the last dimension where that is contiguous, and put reductions outside."""
    from tvm.s_tir.schedule import ScheduleError

    for name in list(_blocks(schedule)):
        block = schedule.get_sblock(name)
        try:
            schedule.compute_inline(block)
        except ScheduleError:
            continue
    for name in list(_blocks(schedule)):
        _vectors(schedule, schedule.get_sblock(name), machine)


def _vectors(schedule: Any, block: Any, machine: Machine) -> None:
    """Run vectors over the last spatial dimension of a block, where its reads and its length allow that."""
    loops = schedule.get_loops(block)
    kinds = [int(var.iter_type) for var in schedule.get(block).iter_vars]
    if not loops or len(loops) != len(kinds) or any(kind not in (_SPATIAL, _REDUCTION) for kind in kinds):
        return
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == _SPATIAL]
    reductions = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == _REDUCTION]
    extent = _extent(schedule, spatial[-1]) if spatial else None
    if extent is None or extent % machine.lanes or not _contiguous(schedule, block, kinds):
        return
    outer, lane = schedule.split(spatial[-1], [None, machine.lanes])
    schedule.reorder(*spatial[:-1], outer, *reductions, lane)
    schedule.vectorize(lane)
    if reductions:
        start = schedule.decompose_reduction(block, reductions[0])
        schedule.vectorize(schedule.get_loops(start)[-1])
    if machine.cores > 1:
        schedule.parallel(schedule.fuse(*spatial[:-1], outer))


_SPATIAL, _REDUCTION = 0, 2  # of TVM's kinds of iteration


def _contiguous(schedule: Any, block: Any, kinds: Sequence[int]) -> bool:
    """Whether the last spatial variable is, where it is read at all, the last index of every read."""
    found = schedule.get(block)
    last = [var.var for var, kind in zip(found.iter_vars, kinds, strict=True) if kind == _SPATIAL][-1]
    for read in found.reads:
        *before, inner = [part.min for part in read.region] or [last]
        if any(_mentions(index, last) for index in before):
            return False
        if _mentions(inner, last) and not inner.same_as(last):
            return False
    return True


def _mentions(expression: Any, variable: Any) -> bool:
    from tvm import tirx

    return any(one.same_as(variable) for one in tirx.analysis.undefined_vars(expression))


def _fits(choice: Choice, shape: Shape) -> bool:
    rows = choice.band or shape.rows
    return (
        shape.rows % rows == 0
        and rows % choice.y == 0
        and shape.columns % choice.x == 0
        and shape.depth % choice.k == 0
        and (shape.kind == DEPTHWISE) == bool(choice.panel)
        and (not choice.panel or shape.channels % choice.panel == 0)
    )


def _vector(channels: int, machine: Machine) -> int:
    """Values of a vector over so many channels: the widest that divides them, or all where they are few."""
    width = machine.lanes
    while width > 1 and channels % width:
        width //= 2
    return channels if width < machine.lanes // 4 else width


def _tiles(shape: Shape, vectors: Sequence[int], most: int) -> tuple[tuple[int, int, int], ...]:
    """Tiles (y, x, vectors) of no more than `most` registers, the largest first, wide ones before high ones."""
    found = [
        (y, x, v)
        for y, x, v in itertools.product(_parts(shape.rows, 4), _parts(shape.columns, most), vectors)
        if y * x * v <= most
    ]
    found.sort(key=lambda tile: (-_merit(*tile), tile))
    return tuple(found[:12]) or ((1, 1, 1),)


def _merit(y: int, x: int, vectors: int) -> float:
    """How well a tile hides latency and saves loads: products for each value that is loaded, up to enough of them."""
    products = y * x * vectors
    return min(products, 10) + products / (y * x + vectors) - 0.1 * (y - 1)


def _bands(shape: Shape) -> tuple[int, ...]:
    return (*(n for n in (4, 2, 8, 1) if shape.rows % n == 0 and n < shape.rows), 0)


def _parts(size: int, most: int) -> list[int]:
    return [n for n in range(1, min(size, most) + 1) if size % n == 0]


def _divisors(size: int, wanted: Sequence[int] | range) -> tuple[int, ...]:
    return tuple(n for n in wanted if n and size % n == 0) or (size,)


def _extent(schedule: Any, loop: Any) -> int | None:
    """The trips of a loop; None where they are free."""
    try:
        return int(schedule.get(loop).extent)
    except TypeError:
        return None


def _blocks(schedule: Any) -> dict[str, Any]:
    """The blocks by name, in the order of the program."""
    return {str(schedule.get(b).name_hint): b for b in schedule.get_child_blocks(schedule.get_sblock("root"))}
