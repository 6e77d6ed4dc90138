"""Golden vectors: rows with the source library's outputs, which a device runs before it trusts a bundle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from outrider.compiler.model import Array, Model, OnnxGraph
from outrider.compiler.samples import Samples
from outrider.compiler.verify import ATOL, RTOL, spread
from outrider.runtime.bundle import Golden, encode_npy
from outrider.runtime.errors import BadDataError
from outrider.runtime.features.plan import FeaturePlan

ROWS = 64


@dataclass(frozen=True)
class GoldenFiles:
    """The manifest's record, and the files by path."""

    record: Golden
    files: dict[str, bytes]


def make_golden(model: Model, samples: Samples, plan: FeaturePlan | None) -> GoldenFiles:
    """At most ROWS of the samples, spread evenly, with outputs of the source library and raw columns where known.

    Raises BadDataError where the raw rows lack a column of the plan.
    """
    fixed = model.payload.batch if isinstance(model.payload, OnnxGraph) else None
    picked = np.arange(fixed) if fixed else spread(samples.rows, ROWS)
    inputs = {name: np.ascontiguousarray(array[picked]) for name, array in samples.inputs.items()}
    outputs = model.reference(inputs)
    raw = _raw(samples, plan, picked)
    files: dict[str, bytes] = {}
    record = Golden(
        rows=len(picked),
        evidence=samples.evidence,
        inputs=_store("inputs", inputs, files),
        outputs=_store("outputs", outputs, files),
        raw=_store("raw", raw, files),
        atol=ATOL,
        rtol=RTOL,
    )
    return GoldenFiles(record=record, files=files)


def _raw(samples: Samples, plan: FeaturePlan | None, picked: Array) -> dict[str, Array]:
    if plan is None or not samples.raw:
        return {}
    missing = [column.name for column in plan.columns if column.name not in samples.raw]
    if missing:
        raise BadDataError(f"the raw rows lack the column {missing[0]!r} of the feature plan")
    return {column.name: samples.raw[column.name][picked] for column in plan.columns}


def _store(kind: str, arrays: dict[str, Array], files: dict[str, bytes]) -> dict[str, str]:
    """Each array as a file named by its place, since tensor names may hold any character."""
    paths: dict[str, str] = {}
    for name, array in arrays.items():
        stem = name if name.replace("_", "").isalnum() and name.isascii() else f"{len(paths)}"
        path = f"golden/{kind}/{stem}.npy"
        if path in files:
            path = f"golden/{kind}/{stem}.{len(paths)}.npy"
        files[path] = encode_npy(array.astype(str) if array.dtype.hasobject else array)
        paths[name] = path
    return paths
