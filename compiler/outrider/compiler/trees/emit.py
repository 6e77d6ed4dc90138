"""Forest and kernels -> C: the sources of an artifact, and the notation that kernels write their tables in.

`artifact.c` is the one file to compile. It includes `kernels.h`, written here, which includes each kernel's header
(a fixed template beside the kernel's Python module) and says which serves rows and which batches. Every kernel reads
the forest's own sizes and arithmetic from `forest.h`, and its tables from a header of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import KernelSource

_A_LINE = 16
_SHARED = ("artifact.c", "common.h", "finish.h", "keys.h", "math.h")
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


def artifact_sources(forest: Forest, row: KernelSource, batch: KernelSource, crossover: int) -> dict[str, str]:
    """The sources of an artifact by file name: batches below `crossover` rows go to `row`, others to `batch`.

    Give the same source twice, and a crossover of 0, for one kernel that serves both. The toolchain adds
    `native_abi.h`.
    """
    files = {name: template(name) for name in _SHARED}
    files["forest.h"] = _forest_header(forest)
    files["kernels.h"] = _kernels_header(row, batch, crossover)
    return {**files, **row.files, **batch.files}


def template(name: str) -> str:
    """The text of a C template beside the kernels."""
    return (resources.files("outrider.compiler.trees") / "kernels" / name).read_text(encoding="utf-8")


def header(title: str, *parts: str) -> str:
    """A generated header: a comment, then definitions."""
    return "\n".join((f"/* {title} */", "#pragma once", "#include <stdint.h>", *parts)) + "\n"


def defines(sizes: Mapping[str, int]) -> str:
    """Sizes as macros. A kernel's names start with its prefix, so that two kernels can share an artifact."""
    return "\n".join(f"#define {name} {value}" for name, value in sizes.items())


def array(ctype: str, name: str, values: NDArray[Any]) -> str:
    """A constant table of integers that are not negative, aligned to a cache line."""
    return _declare(ctype, name, [hex(value) for value in values.ravel().tolist()])


def sums(name: str, values: NDArray[np.float64], forest: Forest) -> str:
    """A constant table of the type of the forest's sums, in hexadecimal notation, which is exact."""
    if forest.precision == "float32":
        texts = [f"{value.hex()}f" for value in values.ravel().astype(np.float32).astype(np.float64).tolist()]
    else:
        texts = [value.hex() for value in values.ravel().tolist()]
    return _declare("sum_t", name, texts)


def _declare(ctype: str, name: str, texts: list[str]) -> str:
    lines = [",".join(texts[i : i + _A_LINE]) for i in range(0, len(texts), _A_LINE)] or ["0"]
    body = ",\n".join(lines)
    return f"static const {ctype} {name}[{max(len(texts), 1)}] __attribute__((aligned(64))) = {{\n{body}}};"


def _kernels_header(row: KernelSource, batch: KernelSource, crossover: int) -> str:
    includes = dict.fromkeys((row.include, batch.include))
    return header(
        "The kernels of this artifact.",
        *(f'#include "{name}"' for name in includes),
        f"#define CROSSOVER {crossover}",
        f"#define ROW_WORKSPACE {row.prefix}_workspace",
        f"#define ROW_RUN {row.prefix}_run",
        f"#define BATCH_WORKSPACE {batch.prefix}_workspace",
        f"#define BATCH_RUN {batch.prefix}_run",
    )


def _forest_header(forest: Forest) -> str:
    sizes = {
        "FEATURES": forest.features,
        "TREES": len(forest.trees),
        "OUTPUTS": forest.outputs,
        "COLUMNS_OUT": forest.columns_out,
        "COMPLEMENT": int(forest.complement),
        "ZERO_IS_MISSING": int(forest.missing == "zero"),
        "TINY_IS_ZERO": int(forest.tiny_is_zero),
        "NEGATIVE_FRACTION_IS_ZERO": int(forest.negative_fraction_is_zero),
        "EXACT_CATEGORIES": int(forest.exact_categories),
        **{name.upper(): number for number, name in enumerate(_TRANSFORMS)},
    }
    return header(
        "One forest: its sizes and its arithmetic, which every kernel keeps to.",
        defines(sizes),
        f"#define TRANSFORM {forest.transform.upper()}",
        f"#define SCALE {forest.scale.hex()}",
        f"typedef {'float' if forest.precision == 'float32' else 'double'} sum_t;",
        *_averaging(forest),
    )


def _averaging(forest: Forest) -> list[str]:
    """Where sums start, and AVERAGED: the sum `i` with its divisor and base, where trees are averaged."""
    if forest.divisor is None:
        return [sums("START", forest.base, forest), "#define AVERAGED(sum, i) (sum)"]
    return [
        sums("START", np.zeros(forest.outputs), forest),
        sums("DIVISOR", forest.divisor, forest),
        sums("BASE", forest.base, forest),
        "#define AVERAGED(sum, i) ((sum) / DIVISOR[i] + BASE[i])",
    ]
