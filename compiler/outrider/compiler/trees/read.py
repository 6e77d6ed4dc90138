"""Treelite model -> Forest: thresholds become integer bounds, category lists become sets, leaves become rows.

Nothing of what is read is trusted: a file may say anything. `check.py` looks at the result as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import (
    CATEGORY,
    LEAF,
    NUMERIC,
    CategorySplit,
    Forest,
    Transform,
    Tree,
    bound_below,
    bound_up_to,
    largest_below,
)
from outrider.runtime.errors import BadModelError, UnsupportedError

if TYPE_CHECKING:
    import treelite

_TRANSFORMS: dict[str, Transform] = {
    "identity": "identity",
    "identity_multiclass": "identity",
    "sigmoid": "sigmoid",
    "multiclass_ova": "sigmoid",
    "softmax": "softmax",
    "exponential": "exponential",
    "hinge": "hinge",
    "signed_square": "signed_square",
    "logarithm_one_plus_exp": "log_one_plus_exp",
    "exponential_standard_ratio": "exponential_ratio",
}
_LESS, _LESS_EQUAL, _GREATER, _GREATER_EQUAL = 2, 3, 4, 5  # Treelite's comparison operators


def read_treelite(model: treelite.Model, *, precision: Literal["float32", "float64"]) -> Forest:
    """Bring a Treelite model to the IR. Of several targets, each has columns for its classes, target by target.

    Raises BadModelError for a model without trees or with unusable values, UnsupportedError for what the IR lacks.
    """
    if model.num_tree == 0:
        raise BadModelError("the model has zero trees", hint="train it for at least one round")
    try:
        return _read(model, precision)
    except (IndexError, ValueError, OverflowError) as e:
        raise BadModelError(f"the model's fields contradict each other: {e}") from e


def _read(model: treelite.Model, precision: Literal["float32", "float64"]) -> Forest:
    header = model.get_header_accessor()
    columns = _Columns(header)
    target_ids, class_ids = _ints(header, "target_id"), _ints(header, "class_id")
    trees = tuple(
        _read_tree(model.get_tree_accessor(i), columns.of(target_ids[i], class_ids[i]), columns)
        for i in range(model.num_tree)
    )
    average = bool(_ints(header, "average_tree_output")[0])
    transform, scale = _transform(header)
    return Forest(
        features=model.num_feature,
        outputs=len(columns.kept),
        trees=trees,
        base=columns.pick(np.array(header.get_field("base_scores"), np.float64)),
        divisor=_tree_counts(trees, len(columns.kept)) if average else None,
        precision=precision,
        transform=transform,
        scale=scale,
    )


class _Columns:
    """Where a target's classes are among the outputs. Treelite pads every target to as many classes as any has.

    `kept`: the padded columns that are outputs, ascending.
    """

    def __init__(self, header: Any) -> None:
        self._classes = [max(count, 1) for count in _ints(header, "num_class")]
        self._width = max(self._classes)
        self.kept = [t * self._width + c for t, count in enumerate(self._classes) for c in range(count)]

    def of(self, target: int, class_id: int) -> int | None:
        """The output that a tree's single leaf values add to; None for leaf vectors over all outputs."""
        if len(self.kept) > 1 and (target < 0 or class_id < 0):
            return None
        return self.kept.index(max(target, 0) * self._width + max(class_id, 0))

    def pick(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The outputs' columns of padded values [..., targets * width]. Raises BadModelError for another width."""
        padded = len(self._classes) * self._width
        if values.shape[-1] != padded:
            raise BadModelError(f"the model gives {values.shape[-1]} values, where {padded} are due")
        return np.ascontiguousarray(values[..., self.kept])


def _read_tree(accessor: Any, output: int | None, columns: _Columns) -> Tree:
    def field(name: str) -> NDArray[Any]:
        return np.array(accessor.get_field(name))  # a copy: the view dies with the model

    left, right = field("cleft").astype(np.int32), field("cright").astype(np.int32)
    kind = np.where(left < 0, LEAF, np.where(field("node_type") == 2, CATEGORY, NUMERIC)).astype(np.uint8)
    bound, threshold, flipped = _decisions(field("threshold"), field("cmp"), kind == NUMERIC)
    missing_right = field("default_left") == 0
    left, right = np.where(flipped, right, left), np.where(flipped, left, right)
    missing_right = np.where(flipped, ~missing_right, missing_right)
    payload = np.zeros(len(kind), np.int32)
    leaves, splits = np.flatnonzero(kind == LEAF), np.flatnonzero(kind == CATEGORY)
    payload[leaves] = np.arange(len(leaves))
    payload[splits] = np.arange(len(splits))
    return Tree(
        kind=kind,
        feature=field("split_index").astype(np.int32),
        bound=bound,
        missing_right=missing_right,
        left=left,
        right=right,
        payload=payload,
        values=_leaf_values(field, leaves, None if output is not None else columns),
        categories=_category_splits(field, splits),
        output=output,
        threshold=threshold,
    )


def _decisions(
    thresholds: NDArray[Any], operators: NDArray[Any], numeric: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.bool_]]:
    """Bounds and thresholds of the numeric nodes, and which of them swap their children.

    For all but NaN, `x > t` is `x <= t` with its children swapped, and `x >= t` is `x < t`.
    """
    known = np.isin(operators, (_LESS, _LESS_EQUAL, _GREATER, _GREATER_EQUAL))
    if not known[numeric].all():
        raise UnsupportedError(
            "the model tests features for equality", hint="splits by <, <=, >, >= and by category are supported"
        )
    strict = np.isin(operators, (_LESS, _GREATER_EQUAL))
    bounds = np.where(strict, bound_below(thresholds), bound_up_to(thresholds))
    limits = np.where(strict, largest_below(thresholds), thresholds.astype(np.float64))
    flipped = numeric & np.isin(operators, (_GREATER, _GREATER_EQUAL))
    return np.where(numeric, bounds, 0).astype(np.int32), np.where(numeric, limits, 0.0), flipped


def _leaf_values(field: Any, leaves: NDArray[np.intp], columns: _Columns | None) -> NDArray[np.float64]:
    """The values of the leaves, in order: [leaves, 1], or [leaves, outputs] of leaf vectors with these columns."""
    vector = field("leaf_vector")
    if len(vector) == 0:
        if columns is not None:
            raise UnsupportedError("a tree lacks the leaf vectors that the model announces")
        return np.ascontiguousarray(field("leaf_value")[leaves].astype(np.float64).reshape(-1, 1))
    begin, end = field("leaf_vector_begin")[leaves].astype(np.int64), field("leaf_vector_end")[leaves].astype(np.int64)
    width = int((end - begin)[0])
    if (end - begin != width).any():
        raise BadModelError("a tree's leaf vectors differ in length")
    values = vector.astype(np.float64)[begin[:, None] + np.arange(width)]
    return values if columns is None else columns.pick(values)


def _category_splits(field: Any, splits: NDArray[np.intp]) -> tuple[CategorySplit, ...]:
    if len(splits) == 0:
        return ()
    listed, begin, end = field("category_list"), field("category_list_begin"), field("category_list_end")
    listed_right, default_left = field("category_list_right_child"), field("default_left")
    result = []
    for node in splits:
        categories = frozenset(listed[begin[node] : end[node]].tolist())
        to_right = bool(listed_right[node])
        result.append(
            CategorySplit(
                right=categories if to_right else frozenset(),
                left=frozenset() if to_right else categories,
                other_right=not to_right,
                missing_right=not default_left[node],
            )
        )
    return tuple(result)


def _transform(header: Any) -> tuple[Transform, float]:
    name = header.get_field("postprocessor")
    transform = _TRANSFORMS.get(name)
    if transform is None:
        raise UnsupportedError(
            f"the output transform {name!r} is not supported", hint=f"known: {', '.join(_TRANSFORMS)}"
        )
    if transform == "sigmoid":
        return transform, float(header.get_field("sigmoid_alpha")[0])
    if transform == "exponential_ratio":
        return transform, float(header.get_field("ratio_c")[0])
    return transform, 1.0


def _tree_counts(trees: tuple[Tree, ...], outputs: int) -> NDArray[np.float64]:
    counts = np.zeros(outputs)
    for tree in trees:
        counts[slice(None) if tree.output is None else tree.output] += 1
    if (counts == 0).any():
        raise BadModelError("an output of the averaged model has no trees")
    return counts


def _ints(header: Any, name: str) -> list[int]:
    return [int(value) for value in header.get_field(name)]
