"""Whether a model file is whole and its trees are trees, before a library that trusts it blindly reads it.

XGBoost, LightGBM and Treelite read past the end of files that are cut off, follow children outside of a tree, and walk
for ever where nodes point in a circle; they may take the process down with them. These checks build nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from outrider.compiler.frontends.ubjson import Reader
from outrider.runtime.errors import BadModelError

_Items = tuple[int | list[int | str], ...]

_I8, _I32, _I64 = 1, 4, 8
# Treelite 4: what stands in the header and in each tree. A number is a scalar of that many bytes, [number] an array
# that begins with its length as uint64; "v" stands for the model's type of thresholds and leaves.
_HEADER_AFTER_TREES: _Items = (_I32, _I8, _I8, _I32, [_I32], [_I32], [_I32], [_I32], [_I8], 4, 4, [_I64], [_I8], _I32)
_TREE_PER_NODE: _Items = ([_I8], [_I32], [_I32], [_I32], [_I8], ["v"], ["v"], [_I8], [_I8])
_TREE_REST: _Items = (
    ["v"],
    [_I64],
    [_I64],
    [4],
    [_I64],
    [_I64],
    [_I64],
    [_I8],
    [_I64],
    [_I8],
    [_I64],
    [_I8],
    _I32,
    _I32,
)
_VALUE_BYTES = {2: 4, 3: 8}  # float32, float64


def check_checkpoint(data: bytes) -> None:
    """Raises BadModelError where the bytes are not one whole checkpoint of Treelite 4."""
    reader = Reader(data)
    major = reader.number("<i")
    reader.skip(2 * _I32)
    threshold, leaf = reader.number("<B"), reader.number("<B")
    if major != 4 or threshold not in _VALUE_BYTES or leaf != threshold:
        raise BadModelError("it is not a checkpoint of Treelite 4")
    value = _VALUE_BYTES[threshold]
    trees = reader.number("<Q")
    for item in _HEADER_AFTER_TREES:
        _skip_item(reader, item, value)
    for _ in range(trees):
        nodes = reader.number("<i")
        reader.skip(_I8)
        for item in _TREE_PER_NODE:
            if _skip_item(reader, item, value) != nodes:
                raise BadModelError("a tree's fields differ in length")
        for item in _TREE_REST:
            _skip_item(reader, item, value)
    reader.finish()


def _skip_item(reader: Reader, item: int | list[int | str], value: int) -> int:
    """Go past a scalar or an array; returns the array's length."""
    if isinstance(item, int):
        reader.skip(item)
        return 1
    length, size = reader.number("<Q"), item[0]
    reader.skip(length * (size if isinstance(size, int) else value))
    return length


def check_xgboost(content: Mapping[str, Any]) -> None:
    """Raises BadModelError where the content of an XGBoost file has no booster, or trees that are none."""
    try:
        trees = booster_model(content).get("trees", ())
        for number, tree in enumerate(trees):
            _check_children(f"tree {number}", tree["left_children"], tree["right_children"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as e:
        raise BadModelError(f"its trees cannot be made out ({e})") from e


def booster_model(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an XGBoost file says of its trees, `dart` or not. Raises KeyError or TypeError where it says nothing."""
    booster = content["learner"]["gradient_booster"]
    found: Mapping[str, Any] = booster.get("gbtree", booster)["model"]
    return found


def _check_children(what: str, left: ArrayLike, right: ArrayLike) -> None:
    """Raises BadModelError unless each child, -1 for none, is the child of one node, and the root of none.

    Then a walk down from the root ends: it cannot enter a circle, whose nodes are children of each other.
    """
    sides = np.asarray(left, np.int64), np.asarray(right, np.int64)
    nodes = len(sides[0])
    if nodes == 0 or len(sides[1]) != nodes or ((sides[0] < 0) != (sides[1] < 0)).any():
        raise BadModelError(f"{what} has nodes with one child, or none at all")
    children = np.concatenate([side[side >= 0] for side in sides])
    if children.size and (children.min() < 1 or children.max() >= nodes or len(np.unique(children)) < len(children)):
        raise BadModelError(f"{what} is not a tree: its nodes point in a circle, outside, or twice at one node")
    if (np.concatenate(sides) < -1).any():
        raise BadModelError(f"{what} has children below -1")


def check_lightgbm(text: str) -> None:
    """Raises BadModelError where the text is not a whole LightGBM model, or where its trees are none.

    `tree_sizes` says how long each tree's text must be.
    """
    if not text.startswith("tree\n"):
        raise BadModelError("it is not a LightGBM text model")
    head = _pairs(text[: max(text.find("\nTree="), 0)])
    sizes = head.get("tree_sizes", "").split()
    start, end = text.find("\nTree=0\n"), text.find("\nend of trees\n")
    if end < 0 or not all(size.isdecimal() for size in sizes):
        raise BadModelError("its trees have no end")
    if sum(map(int, sizes)) != (len(text[start:end].encode()) if sizes else 0):
        raise BadModelError("its trees are cut off or were changed")
    if "\nend of parameters" not in text[end:]:
        raise BadModelError("its parameters have no end")
    try:
        features = int(head["max_feature_idx"]) + 1
        for number, tree in enumerate(text[start:end].split("\nTree=")[1:] if sizes else ()):
            _check_lightgbm_tree(f"tree {number}", _pairs(tree), features)
    except (KeyError, ValueError, OverflowError) as e:
        raise BadModelError(f"its trees cannot be made out ({e})") from e


def _check_lightgbm_tree(what: str, tree: Mapping[str, str], features: int) -> None:
    """A tree of n leaves has n - 1 splits; a child below 0 is the leaf -child - 1."""
    leaves = int(tree["num_leaves"])
    splits = leaves - 1

    def numbers(name: str, kind: type = int) -> Any:
        return np.array(tree.get(name, "").split(), kind)

    if leaves < 1 or len(numbers("leaf_value", float)) != leaves:
        raise BadModelError(f"{what} does not have the leaves that it announces")
    if splits == 0:
        return
    left, right, feature, kind = (
        numbers(name) for name in ("left_child", "right_child", "split_feature", "decision_type")
    )
    threshold = numbers("threshold", float)
    if any(len(field) != splits for field in (left, right, feature, kind, threshold)):
        raise BadModelError(f"{what} has fields of different lengths")
    none = np.full(leaves, -1)
    sides = [np.concatenate([np.where(side < 0, splits + ~side, side), none]) for side in (left, right)]
    _check_children(what, *sides)
    if (feature < 0).any() or (feature >= features).any():
        raise BadModelError(f"{what} splits on a feature that the model does not have")
    _check_lightgbm_categories(what, numbers("cat_boundaries"), len(numbers("cat_threshold")), threshold[kind & 1 != 0])


def _check_lightgbm_categories(what: str, boundaries: Any, words: int, places: Any) -> None:
    """Splits by category name a place between two boundaries of the words of bits."""
    if len(places) == 0:
        return
    sets = len(boundaries) - 1
    fits = sets >= 1 and boundaries[0] == 0 and boundaries[-1] == words and (np.diff(boundaries) >= 0).all()
    if not fits or places.min() < 0 or places.max() >= sets:
        raise BadModelError(f"{what} splits by categories that it does not list")


def _pairs(text: str) -> dict[str, str]:
    """The lines `name=value`."""
    return {name: value for name, found, value in (line.partition("=") for line in text.splitlines()) if found}
