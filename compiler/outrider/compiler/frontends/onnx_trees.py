"""Tree operators of `ai.onnx.ml` as their attributes say, brought to one form: all nodes in one numbering.

TreeEnsembleClassifier and TreeEnsembleRegressor name nodes by (tree, node), and leaves vote for outputs. TreeEnsemble
(opset 5) numbers nodes and leaves apart. Nothing of it is trusted. What ONNX Runtime makes of it is in
`onnx_forest.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.frontends.onnx_nodes import (
    EQ,
    GT,
    GTE,
    LEAF,
    LEQ,
    LT,
    MEMBER,
    NEQ,
    Ints,
    Nodes,
    NotAForest,
    settle,
)
from outrider.compiler.model import Label
from outrider.runtime.errors import BadModelError

if TYPE_CHECKING:
    import onnx

TREE_OPERATORS = ("TreeEnsembleClassifier", "TreeEnsembleRegressor", "TreeEnsemble")
_MODES = {
    b"BRANCH_LEQ": LEQ,
    b"BRANCH_LT": LT,
    b"BRANCH_GTE": GTE,
    b"BRANCH_GT": GT,
    b"BRANCH_EQ": EQ,
    b"BRANCH_NEQ": NEQ,
    b"BRANCH_MEMBER": MEMBER,
    b"LEAF": LEAF,
}
_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
# In opset 5 transforms are numbers. ONNX Runtime takes 1 for LOGISTIC and 2 for SOFTMAX, the specification the reverse.
_LARGEST_MEMBER = 30  # of a set against which ONNX Runtime compares a number as it is, not cut to an integer
_TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")


@dataclass(frozen=True)
class Votes:
    """What leaves add: sorted by `leaf`, int64 [votes]; `output` int64 and `weight` float64 [votes]."""

    leaf: Ints
    output: Ints
    weight: NDArray[np.float64]


@dataclass(frozen=True)
class Ensemble:
    """One tree operator. `base` float64: empty, or values that are added. `labels`: a classifier's, in order.

    `wide`: its thresholds or weights are given as doubles.
    """

    nodes: Nodes
    votes: Votes
    outputs: int
    aggregate: str
    transform: str
    base: NDArray[np.float64]
    labels: tuple[Label, ...] = ()
    wide: bool = False


def read_ensemble(node: onnx.NodeProto) -> Ensemble:
    """Raises BadModelError where the attributes contradict each other or the trees are none."""
    attributes = attributes_of(node)
    try:
        if node.op_type == "TreeEnsemble":
            found = _read_numbered(attributes)
        else:
            found = _read_named(attributes, classifier=node.op_type == "TreeEnsembleClassifier")
    except (KeyError, IndexError, ValueError, TypeError, OverflowError) as e:
        raise BadModelError(f"the attributes of a {node.op_type} contradict each other ({e!r})") from e
    wide = any(isinstance(value, np.ndarray) and value.dtype == np.float64 for value in attributes.values())
    return replace(found, wide=wide)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes by name: numbers and text as they are, lists and tensors as arrays or lists of bytes."""
    import onnx

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        found[attribute.name] = onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    return found


# By (tree, node) ----------------------------------------------------------------------------------------------------


def _read_named(attributes: Mapping[str, Any], *, classifier: bool) -> Ensemble:
    names = _Names(_ints(attributes, "nodes_treeids"), _ints(attributes, "nodes_nodeids"))
    trees = names.trees
    mode = np.array([_MODES[text] for text in attributes["nodes_modes"]], np.uint8)
    inner = mode != LEAF
    true, false = np.zeros(len(mode), np.int64), np.zeros(len(mode), np.int64)
    true[inner] = names.find(trees[inner], _ints(attributes, "nodes_truenodeids", len(mode))[inner])
    false[inner] = names.find(trees[inner], _ints(attributes, "nodes_falsenodeids", len(mode))[inner])
    nodes = Nodes(
        mode=mode,
        feature=_ints(attributes, "nodes_featureids", len(mode)),
        value=_floats(attributes, "nodes_values", len(mode)),
        true=true,
        false=false,
        missing_true=_flags(attributes, len(mode)),
        leaf=np.arange(len(mode)),
        roots=np.flatnonzero(np.diff(trees, prepend=-1)),
    )
    if len(nodes.roots) != names.count:
        raise NotAForest("it lists the nodes of its trees in a mixture")
    prefix = "class" if classifier else "target"
    votes = _votes(
        names.find(_ints(attributes, f"{prefix}_treeids"), _ints(attributes, f"{prefix}_nodeids"), given=True),
        _ints(attributes, f"{prefix}_ids"),
        _floats(attributes, f"{prefix}_weights"),
    )
    labels = _labels(attributes) if classifier else ()
    return _checked(
        Ensemble(
            nodes=nodes,
            votes=votes,
            outputs=len(labels) if classifier else int(attributes.get("n_targets", 1)),
            aggregate="SUM" if classifier else attributes.get("aggregate_function", b"SUM").decode(),
            transform=attributes.get("post_transform", b"NONE").decode(),
            base=_floats(attributes, "base_values"),
            labels=labels,
        )
    )


class _Names:
    """Nodes by (tree, node). `trees`: the place of each node's tree among all ids, `count` of them."""

    def __init__(self, tree_ids: Ints, node_ids: Ints) -> None:
        self._ids, places = np.unique(tree_ids, return_inverse=True)
        first = np.unique(places, return_index=True)[1]
        self._rank = np.argsort(np.argsort(first))  # trees count in the order in which they appear
        self.trees, self.count = self._rank[places], len(self._ids)
        self._width = int(node_ids.max(initial=0)) + 1
        keys = self.trees * self._width + node_ids
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        if len(tree_ids) != len(node_ids) or len(keys) == 0 or node_ids.min() < 0 or (np.diff(self._keys) == 0).any():
            raise BadModelError("an ONNX tree ensemble has no nodes, or two of one name")

    def find(self, trees: Ints, nodes: Ints, *, given: bool = False) -> Ints:
        """Which node each pair names; `given`: trees are ids as the file has them."""
        if given:
            places = np.searchsorted(self._ids, trees)
            if (self._ids[np.minimum(places, self.count - 1)] != trees).any():
                raise BadModelError("an ONNX tree ensemble names a tree that it does not have")
            trees = self._rank[places]
        keys = trees * self._width + nodes
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        if (nodes < 0).any() or (nodes >= self._width).any() or (self._keys[places] != keys).any():
            raise BadModelError("an ONNX tree ensemble names a node that it does not have")
        return self._order[places]


def _labels(attributes: Mapping[str, Any]) -> tuple[Label, ...]:
    texts = attributes.get("classlabels_strings")
    if texts:
        return tuple(text.decode() for text in texts)
    return tuple(int(number) for number in attributes["classlabels_int64s"])


# Nodes and leaves apart ---------------------------------------------------------------------------------------------


def _read_numbered(attributes: Mapping[str, Any]) -> Ensemble:
    mode = np.asarray(attributes["nodes_modes"], np.uint8).ravel()
    count = len(mode)
    leaves = _ints(attributes, "leaf_targetids")
    # Each place where a leaf stands becomes a node of its own, behind the inner ones.
    children, standing = [], []
    for side in ("true", "false"):
        child, is_leaf = (
            _ints(attributes, f"nodes_{side}nodeids", count),
            _ints(attributes, f"nodes_{side}leafs", count),
        )
        ends = np.flatnonzero(is_leaf != 0)
        if (child < 0).any() or (child[ends] >= len(leaves)).any() or (child[is_leaf == 0] >= count).any():
            raise BadModelError("an ONNX TreeEnsemble names a node or a leaf that it does not have")
        standing.append(child[ends])
        child = child.copy()
        child[ends] = count + sum(map(len, standing[:-1])) + np.arange(len(ends))
        children.append(child)
    leaf = np.concatenate([np.full(count, -1), *standing])
    missing = len(leaf) - count
    roots = _ints(attributes, "tree_roots")
    if len(roots) == 0 or (roots < 0).any() or (roots >= count).any() or (mode > MEMBER).any():
        raise BadModelError("an ONNX TreeEnsemble has no roots, roots that are no nodes, or unknown modes")

    def padded(values: NDArray[Any], fill: Any) -> Any:
        return np.concatenate([values, np.full(missing, fill, values.dtype)])

    members = _members(mode, _floats(attributes, "membership_values"))
    nodes = Nodes(
        mode=padded(mode, LEAF),
        feature=padded(_ints(attributes, "nodes_featureids", count), 0),
        value=padded(_floats(attributes, "nodes_splits", count), 0.0),
        true=padded(children[0], 0),
        false=padded(children[1], 0),
        missing_true=padded(_flags(attributes, count), False),
        leaf=leaf,
        roots=roots,
        members=members,
    )
    weights = _floats(attributes, "leaf_weights", len(leaves))
    found = _checked(
        Ensemble(
            nodes=nodes,
            votes=_votes(np.arange(len(leaves)), leaves, weights),
            outputs=int(attributes["n_targets"]),
            aggregate=_AGGREGATES[int(attributes.get("aggregate_function", 1))],
            transform=_TRANSFORMS[int(attributes.get("post_transform", 0))],
            base=np.zeros(0),
        )
    )
    if any(not 0 <= value <= _LARGEST_MEMBER for numbers in members.values() for value in numbers):
        raise NotAForest(f"it tests membership of numbers beyond 0 to {_LARGEST_MEMBER}, which ONNX Runtime truncates")
    return found


def _members(mode: NDArray[np.uint8], values: NDArray[np.float64]) -> dict[int, frozenset[float]]:
    """The sets of the MEMBER nodes, in their order; NaN stands between two sets."""
    owners = np.flatnonzero(mode == MEMBER).tolist()
    ends = np.flatnonzero(np.isnan(values)).tolist()
    starts = [0, *(end + 1 for end in ends)]
    sets = [frozenset(values[a:b].tolist()) for a, b in zip(starts, [*ends, len(values)], strict=True)]
    if sets and not sets[-1]:
        sets.pop()
    if len(sets) != len(owners):
        raise BadModelError("an ONNX TreeEnsemble does not have a set for each of its nodes that test membership")
    return dict(zip(owners, sets, strict=True))


# Both ---------------------------------------------------------------------------------------------------------------


def _votes(leaf: Ints, output: Ints, weight: NDArray[np.float64]) -> Votes:
    if not len(leaf) == len(output) == len(weight):
        raise BadModelError("an ONNX tree ensemble has weights without a leaf or an output")
    order = np.argsort(leaf, kind="stable")
    return Votes(leaf=leaf[order], output=output[order], weight=weight[order])


def _checked(ensemble: Ensemble) -> Ensemble:
    if ensemble.outputs < 1 or ensemble.aggregate not in _AGGREGATES or ensemble.transform not in _TRANSFORMS:
        raise BadModelError("an ONNX tree ensemble has no outputs, or an aggregation or transform that is unknown")
    if not ensemble.labels and len(ensemble.base) not in (0, ensemble.outputs):
        raise BadModelError(f"a tree ensemble has {len(ensemble.base)} base values for {ensemble.outputs} outputs")
    output = ensemble.votes.output
    if (output < 0).any() or (output >= ensemble.outputs).any():
        raise BadModelError(f"an ONNX tree ensemble gives weights to an output beyond its {ensemble.outputs}")
    if not np.isfinite(ensemble.votes.weight).all() or not np.isfinite(ensemble.base).all():
        raise BadModelError("an ONNX tree ensemble holds weights that are not finite numbers")
    return replace(ensemble, nodes=settle(ensemble.nodes))


def _ints(attributes: Mapping[str, Any], name: str, count: int | None = None) -> Ints:
    found: Ints = _sized(name, np.asarray(attributes.get(name, ()), np.int64).ravel(), count)
    return found


def _floats(attributes: Mapping[str, Any], name: str, count: int | None = None) -> NDArray[np.float64]:
    """Floats of a list, or of a tensor `name` or `name_as_tensor`; a list holds float32 values."""
    values = attributes.get(f"{name}_as_tensor", attributes.get(name, ()))
    found: NDArray[np.float64] = _sized(name, np.asarray(values, np.float64).ravel(), count)
    return found


def _sized(name: str, values: NDArray[Any], count: int | None) -> Any:
    if count is not None and len(values) != count:
        raise BadModelError(f"an ONNX tree ensemble has {len(values)} {name}, where {count} are due")
    return values


def _flags(attributes: Mapping[str, Any], count: int) -> NDArray[np.bool_]:
    """Where NaN goes the way of `true`; nowhere, where nothing is said."""
    given: Sequence[int] = attributes.get("nodes_missing_value_tracks_true", ())
    flags = np.asarray(given if len(given) else np.zeros(count), np.int64) != 0
    found: NDArray[np.bool_] = _sized("nodes_missing_value_tracks_true", flags, count)
    return found
