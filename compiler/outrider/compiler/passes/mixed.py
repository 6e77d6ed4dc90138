"""Mixed precision: which layers lose most by int8, and the model with those kept in float32.

Each layer by itself is computed from inputs and weights that were rounded to int8 and back (`switches` says how), and
the outputs are compared with those in float32 on calibration feeds:

    error = max over outputs of  |int8 - float32| / |float32|  (Euclidean norms over all feeds)

Layers whose weights lose most by rounding go first, so that where not all are measured, it is the likely ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from outrider.compiler.passes.feeds import Feed
from outrider.compiler.passes.int8 import Calibration, quantise
from outrider.compiler.passes.switches import Outputs, Switched, open_session, run_session
from outrider.runtime.errors import BadDataError, BadInputError, UnsupportedError

if TYPE_CHECKING:
    import onnx

FEEDS = 8  # as many of the feeds as this, spread evenly, tell one layer from another

Progress = Callable[[int, int], None]  # layers measured, layers in all


@dataclass(frozen=True)
class Sensitivity:
    """A layer, and the model's error where it alone is int8; None where it was not measured.

    `rounding`: the relative error of the layer's weights in int8; 0 where they are not constant.
    """

    layer: str
    error: float | None
    rounding: float


@dataclass(frozen=True)
class Ranking:
    """The layers by falling error; behind them those that were not measured, by falling rounding."""

    layers: tuple[Sensitivity, ...]

    @property
    def complete(self) -> bool:
        """Whether all layers were measured."""
        return all(one.error is not None for one in self.layers)


def rank(
    calibration: Calibration,
    feeds: Sequence[Feed],
    *,
    most: int | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """Rank the layers of a calibrated model by what int8 costs each, on some of the feeds.

    most: how many are measured, None for all. progress is told after each layer.
    Raises BadDataError where there are no feeds, or the outputs in float32 are not finite.
    """
    if not feeds:
        raise BadDataError("there are no calibration feeds to rank layers on")
    some = [feeds[i] for i in sorted({i * len(feeds) // FEEDS for i in range(FEEDS)})]
    switched = Switched(calibration)
    wanted = switched.run(some, None)
    if not all(np.isfinite(value).all() for made in wanted for value in made if value.dtype.kind == "f"):
        raise BadDataError("the model's outputs on the calibration feeds are not finite in float32")
    rounding = {layer: switched.rounding(layer) for layer in calibration.layers}
    order = sorted(calibration.layers, key=lambda layer: -rounding[layer])
    errors: dict[str, float] = {}
    for layer in order[:most]:
        errors[layer] = relative_error(switched.run(some, layer), wanted)
        if progress is not None:
            progress(len(errors), len(order))
    ranked = sorted(order, key=lambda layer: (layer not in errors, -errors.get(layer, rounding[layer])))
    return Ranking(tuple(Sensitivity(layer, errors.get(layer), rounding[layer]) for layer in ranked))


def keep_sensitive(calibration: Calibration, ranking: Ranking, count: int) -> onnx.ModelProto:
    """The int8 model with the `count` most sensitive layers in float32.

    Raises BadInputError for a count that is below 0, UnsupportedError where nothing is left to quantise.
    """
    if count < 0:
        raise BadInputError(f"{count} layers cannot be kept in float32", hint="give a number from 0")
    if count >= len(ranking.layers):
        raise UnsupportedError(
            f"all {len(ranking.layers)} layers would stay in float32", hint="keep fewer, or compile in float32"
        )
    return quantise(calibration, exclude=[one.layer for one in ranking.layers[:count]])


def run_feeds(data: bytes, feeds: Sequence[Feed]) -> Outputs:
    """A model's outputs for each feed, by ONNX Runtime on one thread. Raises UnsupportedError where it cannot."""
    return run_session(open_session(data), feeds)


def relative_error(found: Outputs, wanted: Outputs) -> float:
    """The largest relative error of an output; of one that holds no floats, the share of values that differ.

    Infinite where what was found is not finite, or is of another shape.
    """
    worst = 0.0
    for output in range(len(wanted[0])):
        off, size = 0.0, 0.0
        for mine, theirs in zip(found, wanted, strict=True):
            a, b = np.asarray(mine[output]), np.asarray(theirs[output])
            if a.shape != b.shape:
                return math.inf
            if b.dtype.kind != "f":
                off, size = off + float(np.sum(a != b)), size + float(b.size)
                continue
            off += float(np.sum((a.astype(np.float64) - b.astype(np.float64)) ** 2))
            size += float(np.sum(b.astype(np.float64) ** 2))
        ratio = off / size if size else (math.inf if off else 0.0)
        is_float = np.asarray(wanted[0][output]).dtype.kind == "f"
        worst = max(worst, (math.sqrt(ratio) if is_float else ratio) if math.isfinite(off) else math.inf)
    return worst
