"""What must hold of every Forest, whichever frontend made it. Checked once, before anything is laid out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.forest import (
    CATEGORY,
    HIGHEST_KEY,
    LEAF,
    LOWEST_KEY,
    MAX_CATEGORY,
    NUMERIC,
    CategorySplit,
    Forest,
    Tree,
    bound_up_to,
)
from outrider.runtime.errors import BadModelError


def check_forest(forest: Forest) -> None:
    """Raises BadModelError, naming the first tree that is at fault, where the forest is not one."""
    reason = next(_wrong(forest), None)
    if reason is not None:
        raise BadModelError(reason)
    for number, tree in enumerate(forest.trees):
        reason = next(_wrong_tree(tree, forest), None)
        if reason is not None:
            raise BadModelError(f"tree {number} of the model {reason}")


def _wrong(forest: Forest) -> Iterator[str]:
    if not forest.trees:
        yield "the model has zero trees"
    if forest.features < 1 or forest.outputs < 1:
        yield f"the model has {forest.features} features and {forest.outputs} outputs"
    if forest.base.shape != (forest.outputs,) or not np.isfinite(forest.base).all():
        yield f"the model's base scores are not {forest.outputs} finite numbers"
    divisor = forest.divisor
    if divisor is not None and (divisor.shape != (forest.outputs,) or not (np.isfinite(divisor) & (divisor > 0)).all()):
        yield f"the model's averages are not over {forest.outputs} positive numbers of trees"
    if not np.isfinite(forest.scale) or forest.scale == 0:
        yield f"the model scales its results by {forest.scale}"
    if forest.complement and forest.outputs != 1:
        yield f"the model gives the complement of {forest.outputs} outputs"


def _wrong_tree(tree: Tree, forest: Forest) -> Iterator[str]:
    nodes, inner, numeric = tree.nodes, tree.kind != LEAF, tree.kind == NUMERIC
    arrays = (tree.feature, tree.bound, tree.threshold, tree.missing_right, tree.left, tree.right, tree.payload)
    if nodes == 0 or any(array.shape != (nodes,) for array in (tree.kind, *arrays)):
        yield "has no nodes, or fields of different lengths"
    if (tree.kind > CATEGORY).any():
        yield "has a node that is neither a split nor a leaf"
    if not _is_tree(tree.left[inner], tree.right[inner], np.flatnonzero(inner), nodes):
        yield "is not a tree: its nodes point in a circle, outside, or twice at one node"
    bad = (tree.feature[inner] < 0) | (tree.feature[inner] >= forest.features)
    if bad.any():
        yield f"splits on feature {tree.feature[inner][bad][0]}, and the model has {forest.features}"
    if (_canonical(tree.bound[numeric]) != _canonical(bound_up_to(tree.threshold[numeric]))).any():
        yield "decides otherwise on doubles than on the same float32"
    yield from _wrong_leaves(tree, forest)
    splits = tree.payload[tree.kind == CATEGORY]
    if ((splits < 0) | (splits >= len(tree.categories))).any():
        yield "has a split by category without its categories"
    yield from (reason for split in tree.categories for reason in _wrong_split(split))


def _canonical(bounds: NDArray[np.int32]) -> NDArray[np.int32]:
    """One bound for each way to decide: beyond all keys there is one on either side, and no number has the key -1."""
    return np.where(bounds == -1, np.int32(0), np.clip(bounds, LOWEST_KEY, HIGHEST_KEY + 1)).astype(np.int32)


def _wrong_leaves(tree: Tree, forest: Forest) -> Iterator[str]:
    width = forest.outputs if tree.output is None else 1
    if tree.output is not None and not 0 <= tree.output < forest.outputs:
        yield f"adds to output {tree.output}, and the model has {forest.outputs}"
    if tree.values.ndim != 2 or tree.values.shape[1] != width:
        yield f"has leaves of the shape {tree.values.shape[1:]}, where {width} values a leaf are due"
    rows = tree.payload[tree.kind == LEAF]
    if ((rows < 0) | (rows >= len(tree.values))).any():
        yield "has a leaf without values"
    if not np.isfinite(tree.values).all():
        yield "holds leaf values that are not finite numbers"


def _wrong_split(split: CategorySplit) -> Iterator[str]:
    known = split.left | split.right
    if split.left & split.right:
        yield "sends a category both ways"
    if known and not 0 <= min(known) <= max(known) < MAX_CATEGORY:
        yield f"knows categories outside 0 to {MAX_CATEGORY - 1}"


def _is_tree(left: NDArray[np.int32], right: NDArray[np.int32], inner: NDArray[np.intp], nodes: int) -> bool:
    """Whether every node but the root is the child of exactly one, and the root is above all."""
    children = np.concatenate([left, right]).astype(np.int64)
    if len(children) != nodes - 1 or ((children < 1) | (children >= nodes)).any():
        return False
    parent = np.zeros(nodes, np.int64)
    parent[children] = np.concatenate([inner, inner])
    if len(np.unique(children)) != nodes - 1:
        return False
    for _ in range(nodes.bit_length()):  # each time, twice as far up: the root is its own parent
        parent = parent[parent]
    return not parent.any()
