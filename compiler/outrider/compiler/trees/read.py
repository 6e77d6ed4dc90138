"""Treelite model -> Forest: thresholds become integer bounds, category lists become sets, leaves become rows."""

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
    """Bring a Treelite model to the IR.

    Raises BadModelError for a model without trees or with unusable values, UnsupportedError for what the IR lacks.
    """
    header = model.get_header_accessor()
    if model.num_tree == 0:
        raise BadModelError("the model has zero trees", hint="train it for at least one round")
    classes = _ints(header, "num_class")
    targets = int(_ints(header, "num_target")[0])
    if targets > 1 and max(classes) > 1:
        raise UnsupportedError(
            "classifiers with several targets are not supported",
            hint="classifiers of one target and regressors of several are; compile one model a target",
        )
    width = int(max(classes))
    outputs = targets * width
    target_ids, class_ids = _ints(header, "target_id"), _ints(header, "class_id")
    trees = tuple(
        _read_tree(model.get_tree_accessor(i), _output(target_ids[i], class_ids[i], width, outputs), outputs)
        for i in range(model.num_tree)
    )
    average = bool(_ints(header, "average_tree_output")[0])
    transform, scale = _transform(header)
    return Forest(
        features=model.num_feature,
        outputs=outputs,
        trees=trees,
        base=_base(header, targets, width, outputs),
        divisor=_tree_counts(trees, outputs) if average else None,
        precision=precision,
        transform=transform,
        scale=scale,
    )


def _output(target: int, class_id: int, width: int, outputs: int) -> int | None:
    """The sum that a tree's scalar leaves add to; None for leaf vectors over all outputs."""
    if outputs > 1 and (target < 0 or class_id < 0):
        return None
    return max(target, 0) * width + max(class_id, 0)


def _read_tree(accessor: Any, output: int | None, outputs: int) -> Tree:
    def field(name: str) -> NDArray[Any]:
        return np.array(accessor.get_field(name))  # a copy: the view dies with the model

    left, right = field("cleft").astype(np.int32), field("cright").astype(np.int32)
    kind = np.where(left < 0, LEAF, np.where(field("node_type") == 2, CATEGORY, NUMERIC)).astype(np.uint8)
    bound, flipped = _bounds(field("threshold"), field("cmp"), kind == NUMERIC)
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
        values=_leaf_values(field, leaves, 1 if output is not None else outputs),
        categories=_category_splits(field, splits),
        output=output,
    )


def _bounds(
    thresholds: NDArray[Any], operators: NDArray[Any], numeric: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Bounds of the numeric nodes, and which of them swap their children (x > t is not x <= t, for all but NaN)."""
    known = np.isin(operators, (_LESS, _LESS_EQUAL, _GREATER, _GREATER_EQUAL))
    if not known[numeric].all():
        raise UnsupportedError(
            "the model tests features for equality", hint="splits by <, <=, >, >= and by category are supported"
        )
    strict = np.isin(operators, (_LESS, _GREATER_EQUAL))
    bounds = np.where(strict, bound_below(thresholds), bound_up_to(thresholds))
    return np.where(numeric, bounds, 0).astype(np.int32), numeric & np.isin(operators, (_GREATER, _GREATER_EQUAL))


def _leaf_values(field: Any, leaves: NDArray[np.intp], width: int) -> NDArray[np.float64]:
    vector = field("leaf_vector")
    if len(vector) == 0:
        if width != 1:
            raise UnsupportedError("a tree lacks the leaf vectors that the model announces")
        values = field("leaf_value")[leaves].astype(np.float64).reshape(-1, 1)
    else:
        begin, end = field("leaf_vector_begin")[leaves], field("leaf_vector_end")[leaves]
        if ((end - begin) != width).any():
            raise UnsupportedError(f"a tree's leaf vectors are not of the model's {width} outputs")
        values = vector.astype(np.float64)[begin[:, None].astype(np.int64) + np.arange(width)]
    if not np.isfinite(values).all():
        raise BadModelError("the model holds leaf values that are not finite numbers")
    return np.ascontiguousarray(values)


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


def _base(header: Any, targets: int, width: int, outputs: int) -> NDArray[np.float64]:
    scores = np.array(header.get_field("base_scores"), np.float64)
    if len(scores) != outputs:
        raise BadModelError(f"the model has {len(scores)} base scores for {targets} targets of {width} classes")
    if not np.isfinite(scores).all():
        raise BadModelError("the model's base score is not a finite number")
    return scores


def _tree_counts(trees: tuple[Tree, ...], outputs: int) -> NDArray[np.float64]:
    counts = np.zeros(outputs)
    for tree in trees:
        counts[slice(None) if tree.output is None else tree.output] += 1
    if (counts == 0).any():
        raise BadModelError("an output of the averaged model has no trees")
    return counts


def _ints(header: Any, name: str) -> list[int]:
    return [int(value) for value in header.get_field(name)]
