"""Forest and kernels -> C: the sources of an artifact, and the notation that kernels write their tables in.

`artifact.c` is the one file to compile. It includes `kernels.h`, written here, which includes each kernel's header
(a fixed template beside the kernel's Python module) and says which serves rows and which batches. Every kernel reads
the forest's own sizes and arithmetic from `forest.h`, and its tables from a header of its own.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.fixed import LOW_BITS, fixed_point
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import KernelSource
from outrider.compiler.trees.narrow import Narrowing, block_rows, filter_words, limit_keys, narrow

_A_LINE = 16
_SHORT = 256  # numbers: up to here a table is written to be read
_EMBED = "#embed packed:"
_ALIGNED = "__attribute__((aligned(64)))"
_CTYPES = {
    **{f"{sign}int{bits}_t": f"<{sign or 'i'}{bits // 8}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{"float": "<f4", "double": "<f8"},
}
_SHARED = ("artifact.c", "common.h", "finish.h", "keys.h", "math.h", "narrow.h")
_TRANSFORMS = (
    "identity",
    "sigmoid",
    "softmax",
    "softmax_zero",
    "exponential",
    "hinge",
    "signed_square",
    "log_one_plus_exp",
    "exponential_ratio",
    "isolation",
    "argmax",
)


def artifact_sources(
    forest: Forest, row: KernelSource, batch: KernelSource, crossover: int, narrowing: Narrowing | None = None
) -> dict[str, str | bytes]:
    """The sources of an artifact by file name: batches below `crossover` rows go to `row`, others to `batch`.

    Give the same source twice, and a crossover of 0, for one kernel that serves both. `forest` is the one that the
    kernels are of, and `narrowing` how rows are made for it; None: float64 rows are rounded. Long tables become files
    of bytes. The toolchain adds the headers of the ABI.
    """
    files = {name: template(name) for name in _SHARED}
    files["forest.h"] = _forest_header(forest)
    files["narrow_tables.h"] = _narrow_header(narrowing or narrow(forest, "float32"))
    files["kernels.h"] = _kernels_header(row, batch, crossover)
    for name in row.files.keys() & batch.files.keys():
        assert row.files[name] == batch.files[name], f"two kernels want {name} to be different files"
    return _unpack({**files, **row.files, **batch.files})


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
    """A constant table of numbers, aligned to a cache line; `ctype` is an integer type of stdint.h or a float.

    A long one is a file of bytes to the compiler, which reads it many times faster than numbers; until then its bytes
    are part of the text. `name` is then a macro, which can be used as the array could.
    """
    dtype = np.dtype(_CTYPES[ctype])
    cast = values.ravel().astype(dtype)
    assert dtype.kind == "f" or np.array_equal(cast, values.ravel()), f"{name} holds what {ctype} does not"
    if len(cast) > _SHORT or not np.isfinite(cast).all():
        return _embedded(ctype, name, cast)
    texts = [_number(value) for value in cast.tolist()] or ["0"]
    body = ",\n".join(",".join(texts[i : i + _A_LINE]) for i in range(0, len(texts), _A_LINE))
    return f"static const {ctype} {name}[{len(texts)}] {_ALIGNED} = {{\n{body}}};"


def sums(name: str, values: NDArray[np.float64], forest: Forest) -> str:
    """A constant table of the type of the forest's sums, `sum_t`."""
    return array("float" if forest.precision == "float32" else "double", name, values)


def _number(value: float) -> str:
    """In hexadecimal notation, which is exact; a float literal is a double, which the table's type rounds back."""
    return value.hex() if isinstance(value, float) else hex(value)


def _embedded(ctype: str, name: str, values: NDArray[Any]) -> str:
    """The table as a union with its bytes: every target is little-endian."""
    data = values.tobytes()
    return "\n".join(
        (
            f"static const union {{ unsigned char bytes[{len(data)}]; {ctype} values[{len(values)}]; }}",
            f"    {name}_TABLE {_ALIGNED} = {{{{",
            "#pragma clang diagnostic push",
            '#pragma clang diagnostic ignored "-Wpragmas"',
            '#pragma clang diagnostic ignored "-Wc23-extensions"',
            f"{_EMBED}{name}:{base64.b64encode(data).decode()}",
            "#pragma clang diagnostic pop",
            "}};",
            f"#define {name} {name}_TABLE.values",
        )
    )


def _unpack(files: Mapping[str, str]) -> dict[str, str | bytes]:
    """The files, and the bytes that `_embedded` has packed into them as files of their own.

    A byte comes before them, since Clang refuses a file that starts as text of another encoding does: 0xfffe, say.
    """
    unpacked: dict[str, str | bytes] = {}

    def take_out(match: re.Match[str]) -> str:
        name, text = match.groups()
        unpacked[f"{name}.bin"] = b"\n" + base64.b64decode(text)
        return f'#embed "{name}.bin" clang::offset(1)'

    for file, text in files.items():
        unpacked[file] = re.sub(rf"^{_EMBED}(\w+):(\S+)$", take_out, text, flags=re.MULTILINE)
    return unpacked


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
    fixed = fixed_point(forest)
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
        "FIXED_WIDE": int(fixed.wide),
        "FIXED_LOW_BITS": LOW_BITS,
        **{name.upper(): number for number, name in enumerate(_TRANSFORMS)},
    }
    return header(
        "One forest: its sizes and its arithmetic, which every kernel keeps to.",
        defines(sizes),
        f"#define TRANSFORM {forest.transform.upper()}",
        f"#define SCALE {forest.scale.hex()}",
        f"#define FIXED_UNIT {fixed.unit.hex()}",
        f"typedef {'float' if forest.precision == 'float32' else 'double'} sum_t;",
        *_averaging(forest),
    )


def _narrow_header(narrowing: Narrowing) -> str:
    words = filter_words(narrowing)
    first = np.cumsum([0, *map(len, narrowing.limits)])
    sizes = {
        "NARROW_NEAREST": int(narrowing.nearest),
        "NARROW_ROWS": block_rows(narrowing.forest),
        "NARROW_FILTERED": int(len(words) > 0),
        "NARROW_FILTER_LOG": max(len(words), 1).bit_length() - 1,
        "NARROW_RANKED": len(narrowing.ranked),
        "NARROW_CATEGORIES": len(narrowing.categories),
    }
    return header(
        "How rows are narrowed to what the kernels take.",
        defines(sizes),
        array("int64_t", "NARROW_LIMITS", limit_keys(np.concatenate(narrowing.limits))),
        array("uint32_t", "NARROW_FIRST", first),
        array("uint32_t", "NARROW_FILTER", words),
        array("uint32_t", "NARROW_RANK", np.array(narrowing.ranked, np.uint32)),
        array("uint32_t", "NARROW_CATEGORY", np.array(narrowing.categories, np.uint32)),
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
