"""The range of each activation on calibration feeds, which is what int8 divides into 256 steps.

ONNX Runtime's own entropy calibration has 128 bins for 128 steps by default, which leaves it one range to choose from:
all that was seen, as minmax. And its histograms hold the activations of all feeds at once. Here they are made feed by
feed, over ranges that a first round found, so that the order of feeds and how they are split make no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.onnx_session import open_session
from outrider.compiler.passes.feeds import Feed
from outrider.compiler.passes.graph import constants, types
from outrider.runtime.errors import BadDataError, UnsupportedError

if TYPE_CHECKING:
    import onnx

Method = Literal["minmax", "entropy", "percentile"]
Range = tuple[float, float]  # lowest, highest
Ranges = Mapping[str, Range]

BINS = 2048
CUT = 1e-4  # the share of values that percentile leaves out, half of it on each side
MOST_CUT = 0.01  # the share of values that entropy may leave out: what is left of a few values looks alike in any steps
_STEPS = 256  # of uint8
_STRIDE = 16  # bins from one end that entropy tries to the next
_FLOATS = (1, 10)  # float32 and float16, of TensorProto.DataType

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """All float values that nodes of the main graph read and write, constants left out, as they are on feeds.

    `ranges`: all that was seen of each. `session` gives the values of a feed.
    """

    session: Any
    feeds: Sequence[Feed]
    ranges: Ranges


def see(model: onnx.ModelProto, feeds: Sequence[Feed]) -> Seen:
    """Run the feeds once.

    Raises BadDataError where a value is NaN or infinite, UnsupportedError where ONNX Runtime cannot run the model.
    """
    names = _activations(model)
    session = _session(model, names)
    seen: dict[str, Range] = {}

    def widen(name: str, values: NDArray[Any]) -> None:
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BadDataError(
                f"the value {name!r} becomes NaN or infinite on the calibration feeds",
                hint="int8 needs finite ranges; look for a division by zero or a mask of infinities in the model",
            )
        before = seen.get(name, (low, high))
        seen[name] = (min(low, before[0]), max(high, before[1]))

    _each(session, names, feeds, widen)
    return Seen(session, feeds, {name: seen.get(name, (0.0, 0.0)) for name in names})


def find_ranges(seen: Seen, method: Method) -> Ranges:
    """The range of each value that is to be divided into steps.

    minmax: all that was seen. percentile: all but the outermost values, `CUT` of them. entropy: up to the magnitude
    at which the distribution before and after rounding to int8 differ least (Kullback-Leibler divergence). But for
    minmax, the feeds are run once more.
    """
    if method == "minmax":
        return seen.ranges
    counts = {name: np.zeros(BINS, np.int64) for name in seen.ranges}
    spans = {name: _span(one, method) for name, one in seen.ranges.items()}

    def count(name: str, values: NDArray[Any]) -> None:
        low, width = spans[name]
        if width > 0:
            places = np.abs(values) if method == "entropy" else values - values.dtype.type(low)
            bins = np.minimum((places * (BINS / width)).astype(np.int32), BINS - 1)
            counts[name] += np.bincount(np.maximum(bins, 0).ravel(), minlength=BINS)

    _each(seen.session, [*seen.ranges], seen.feeds, count)
    choose = _by_entropy if method == "entropy" else _by_percentile
    return {name: choose(one, counts[name]) for name, one in seen.ranges.items()}


def _activations(model: onnx.ModelProto) -> list[str]:
    known = types(model.graph)
    fixed = {tensor.name for tensor in model.graph.initializer} | constants(model.graph).keys()
    ordered = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return [
        name for name in dict.fromkeys(ordered) if name in known and known[name][0] in _FLOATS and name not in fixed
    ]


def _session(model: onnx.ModelProto, names: Sequence[str]) -> Any:
    """A session that gives all these values, those that are inputs left out."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    known = types(made.graph)
    given = {value.name for value in (*made.graph.input, *made.graph.output)}
    made.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, known[name][0], None) for name in names if name not in given
    )
    try:
        return open_session(made.SerializeToString(), as_written=True)
    except Exception as e:  # of many kinds, some not exported
        raise UnsupportedError(f"ONNX Runtime cannot load the model to calibrate it: {e}") from e


def _each(
    session: Any, names: Sequence[str], feeds: Sequence[Feed], visit: Callable[[str, NDArray[Any]], None]
) -> None:
    """Run each feed, and visit each value that is not empty."""
    computed = {one.name for one in session.get_outputs()}
    outputs = [name for name in names if name in computed]
    for number, feed in enumerate(feeds):
        given = {name: np.asarray(values) for name, values in feed.items()}
        try:
            made = session.run(outputs, given) if outputs else []
        except Exception as e:  # of many kinds, some not exported
            raise BadDataError(f"the model cannot be run on calibration feed {number}: {e}") from e
        found = {**given, **dict(zip(outputs, made, strict=True))}
        for name in names:  # in the order of the graph, so that what goes wrong is told where it begins
            if name in found and np.size(found[name]):
                visit(name, found[name])


def _span(one: Range, method: Method) -> tuple[float, float]:
    """Where a histogram begins, and how wide it is: over magnitudes for entropy, else over values."""
    low, high = one
    return (0.0, max(-low, high)) if method == "entropy" else (low, high - low)


def _by_percentile(one: Range, counts: Counts) -> Range:
    low, high = one
    total = int(counts.sum())
    if not total:
        return one
    below = np.cumsum(counts)
    first = int(np.searchsorted(below, CUT / 2 * total, side="right"))
    last = int(np.searchsorted(below, (1 - CUT / 2) * total, side="left"))
    width = (high - low) / BINS
    return low + first * width, min(high, low + (last + 1) * width)


def _by_entropy(one: Range, counts: Counts) -> Range:
    low, high = one
    end = max(-low, high)
    # Zeros come out exact whatever the scale; as many as ReLU makes would decide alone.
    told = counts.copy()
    told[0] = told[1]
    steps = _STEPS if low >= 0 or high <= 0 else _STEPS // 2
    if end <= 0 or not told.any():
        return one
    beyond = told.sum() - np.cumsum(told)
    ends = [at for at in range(steps, BINS + 1, _STRIDE) if beyond[at - 1] <= MOST_CUT * told.sum()]
    losses = [_divergence(told, at, steps) for at in ends]
    limit = end * ends[int(np.argmin(losses))] / BINS
    return max(low, -limit), min(high, limit)


def _divergence(counts: Counts, end: int, steps: int) -> float:
    """How far a histogram is from itself cut off at bin `end` and rounded to `steps` steps, in nats.

    A step gives each bin of its own that had values the same share of them; what lies beyond the end counts as the
    last bin's, and is missing from the step it lands in.
    """
    inside = counts[:end].astype(np.float64)
    wanted = inside.copy()
    wanted[-1] += counts[end:].sum()
    step = np.arange(end) * steps // end
    filled = (inside > 0).astype(np.float64)
    mean = np.bincount(step, inside, steps) / np.maximum(np.bincount(step, filled, steps), 1)
    rounded = mean[step] * filled
    has = wanted > 0
    p, q = wanted[has] / wanted.sum(), rounded[has] / max(rounded.sum(), 1e-300)
    return float(np.sum(p * np.log(p / np.maximum(q, 1e-9))))


__all__ = ["BINS", "CUT", "Method", "Range", "Ranges", "Seen", "find_ranges", "see"]
