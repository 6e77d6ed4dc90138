"""Golden vectors: rows with the source library's outputs, which a device runs before it trusts a bundle."""

from __future__ import annotations

from dataclasses import dataclass

from outrider.compiler.model import Array
from outrider.compiler.samples import Samples
from outrider.compiler.verify import ATOL, MAX_ROWS, RTOL, Truth, golden_rows, spread
from outrider.runtime.bundle import Golden, encode_npy
from outrider.runtime.calls import pick_calls
from outrider.runtime.errors import BadDataError
from outrider.runtime.features.plan import FeaturePlan

RAW_IMAGES = 8
MAX_RAW_BYTES = 4 << 20  # of images as they were given, but for one that is larger


@dataclass(frozen=True)
class GoldenFiles:
    """The manifest's record, and the files by path."""

    record: Golden
    files: dict[str, bytes]


def make_golden(truth: Truth, samples: Samples, plan: FeaturePlan | None) -> GoldenFiles:
    """Some of what was compared, with raw columns, or some images as they were given.

    Raises BadDataError where the raw rows lack a column of the plan.
    """
    chosen = golden_rows(samples, truth.rows)
    picked = spread(samples.rows, MAX_ROWS)[chosen]
    inputs, outputs = pick_calls(truth.inputs, chosen), pick_calls(truth.outputs, chosen)
    raw = _raw(samples, plan, picked) or _raw_images(samples, picked)
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


def _raw_images(samples: Samples, picked: Array) -> dict[str, Array]:
    """The smallest images of the picked rows, by place among them: RAW_IMAGES, MAX_RAW_BYTES at most, one at least."""
    if not samples.images:
        return {}
    images = dict(enumerate(samples.images_of(picked)))
    smallest = sorted(images, key=lambda place: (images[place].nbytes, place))[:RAW_IMAGES]
    chosen = [place for n, place in enumerate(smallest) if n == 0 or _bytes(images, smallest[: n + 1]) <= MAX_RAW_BYTES]
    return {str(place): images[place] for place in sorted(chosen)}


def _bytes(images: dict[int, Array], places: list[int]) -> int:
    return sum(images[place].nbytes for place in places)


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
