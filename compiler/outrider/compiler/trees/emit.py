"""Tables -> C: `forest.h` holds the sizes and tables of one forest; the kernels beside it never change."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.layout import Tables

_A_LINE = 16
_BLOCK_ROWS = 128
_BLOCK_BYTES = 256 << 10  # virtual columns and sums of a block of rows: about half of a small core's L2


@dataclass(frozen=True)
class KernelOptions:
    """Choices that change speed and never results: how many walks run interleaved."""

    lanes: int = 8


def emit(tables: Tables, options: KernelOptions) -> dict[str, str]:
    """The sources of an artifact by file name; `k2.c` is the one to compile.

    It includes `native_abi.h` of the runtime, which the toolchain adds.
    """
    kernels = resources.files("outrider.compiler.trees") / "kernels"
    return {
        "k2.c": (kernels / "k2.c").read_text(),
        "math.h": (kernels / "math.h").read_text(),
        "forest.h": _forest_header(tables, options),
    }


def _forest_header(tables: Tables, options: KernelOptions) -> str:
    forest = tables.forest
    parts = [
        "/* One forest: its sizes, and its tables as layout.py describes them. */",
        "#include <stdint.h>",
        *(f"#define {name} {value}" for name, value in _sizes(tables, options).items()),
        *_arithmetic(forest),
        _array("uint32_t", "COLUMN_FEATURE", tables.column_feature),
        _nodes(tables),
        _array("uint32_t", "ROOT", tables.root),
        _array("uint32_t", "DEPTH", tables.depth),
        *_outputs(tables),
        _floats("VALUES", tables.values, forest),
        _floats("START", np.zeros(forest.outputs) if forest.divisor is not None else forest.base, forest),
    ]
    if tables.category_columns:
        parts.append(_array("uint32_t", "CATEGORY_SETS", tables.category_sets))
    return "\n".join(parts) + "\n"


def block_rows(tables: Tables, options: KernelOptions) -> int:
    """Rows that the kernel takes through a tree before the next one: a multiple of the lanes."""
    row_bytes = 4 * tables.columns + 8 * tables.forest.outputs
    return max(options.lanes, min(_BLOCK_ROWS, _BLOCK_BYTES // row_bytes) // options.lanes * options.lanes)


def _sizes(tables: Tables, options: KernelOptions) -> dict[str, int]:
    forest = tables.forest
    return {
        "FEATURES": forest.features,
        "COLUMNS": tables.columns,
        "LEFT_COLUMNS": tables.left_columns,
        "RIGHT_COLUMNS": tables.right_columns,
        "CATEGORY_COLUMNS": tables.category_columns,
        "TREES": len(forest.trees),
        "WIDTH": tables.width,
        "OUTPUTS": forest.outputs,
        "COLUMNS_OUT": forest.columns_out,
        "COMPLEMENT": int(forest.complement),
        "LANES": options.lanes,
        "BLOCK": block_rows(tables, options),
        "WIDE": int(tables.wide),
        "ZERO_IS_MISSING": int(forest.missing == "zero"),
        "TINY_IS_ZERO": int(forest.tiny_is_zero),
        "NEGATIVE_FRACTION_IS_ZERO": int(forest.negative_fraction_is_zero),
        "EXACT_CATEGORIES": int(forest.exact_categories),
    }


_TRANSFORMS = (
    "identity",
    "sigmoid",
    "softmax",
    "exponential",
    "hinge",
    "signed_square",
    "log_one_plus_exp",
    "exponential_ratio",
    "isolation",
    "argmax",
)


def _arithmetic(forest: Forest) -> list[str]:
    lines = [f"#define {name.upper()} {number}" for number, name in enumerate(_TRANSFORMS)]
    lines += [f"#define TRANSFORM {forest.transform.upper()}", f"#define SCALE {forest.scale.hex()}"]
    lines.append(f"typedef {'float' if forest.precision == 'float32' else 'double'} sum_t;")
    if forest.divisor is None:
        return [*lines, "#define AVERAGED(sum, i) (sum)"]
    return [
        *lines,
        _floats("DIVISOR", forest.divisor, forest),
        _floats("BASE", forest.base, forest),
        "#define AVERAGED(sum, i) ((sum) / DIVISOR[i] + BASE[i])",
    ]


def _nodes(tables: Tables) -> str:
    bound = tables.bound.view(np.uint32)
    if tables.wide:
        return _array("uint32_t", "NODES", np.stack([bound, tables.column, tables.child], axis=1).ravel())
    words = bound.astype(np.uint64) | tables.column.astype(np.uint64) << np.uint64(32)
    return _array("uint64_t", "NODES", words | tables.child.astype(np.uint64) << np.uint64(48))


def _outputs(tables: Tables) -> list[str]:
    if tables.forest.outputs == 1:
        return ["#define TREE_OUTPUT(tree) 0"]
    return [_array("uint32_t", "OUTPUT", tables.output), "#define TREE_OUTPUT(tree) OUTPUT[tree]"]


def _floats(name: str, values: NDArray[np.float64], forest: Forest) -> str:
    """An array of sums' type, in hexadecimal notation, which is exact."""
    if forest.precision == "float32":
        texts = [f"{value.hex()}f" for value in values.astype(np.float32).astype(np.float64).tolist()]
    else:
        texts = [value.hex() for value in values.tolist()]
    return _declare("sum_t", name, texts)


def _array(ctype: str, name: str, values: NDArray[Any]) -> str:
    return _declare(ctype, name, [hex(value) for value in values.tolist()])


def _declare(ctype: str, name: str, texts: list[str]) -> str:
    lines = [",".join(texts[i : i + _A_LINE]) for i in range(0, len(texts), _A_LINE)] or ["0"]
    body = ",\n".join(lines)
    return f"static const {ctype} {name}[{max(len(texts), 1)}] __attribute__((aligned(64))) = {{\n{body}}};"
