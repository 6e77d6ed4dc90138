"""A tree operator of ONNX -> Forest, with the arithmetic of ONNX Runtime, which is the reference.

It compares in the type of the operator's input, adds leaves in the order of the trees in that type, then the base
values. What it makes of votes and transforms differs from the specification in places; each is told where it is met.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.frontends.onnx_equal import as_categories, with_categories
from outrider.compiler.frontends.onnx_features import Feature
from outrider.compiler.frontends.onnx_nodes import GT, GTE, LEAF, LT, NEQ, Ints, Nodes, NotAForest, orders
from outrider.compiler.frontends.onnx_trees import Ensemble, Votes
from outrider.compiler.model import Label, Precision
from outrider.compiler.trees import forest as ir
from outrider.compiler.trees.forest import Forest, Transform, Tree, bound_up_to, largest_below
from outrider.runtime.errors import BadModelError

_TRANSFORMS: dict[str, Transform] = {
    "NONE": "identity",
    "LOGISTIC": "sigmoid",
    "SOFTMAX": "softmax",
    "SOFTMAX_ZERO": "softmax_zero",
}


@dataclass(frozen=True)
class Columns:
    """The features of the trees, as functions of the input's columns. `width`: how many columns the input has.

    `source` is the input's type, `kind` that of the features when they reach the trees.
    """

    width: int
    source: Precision
    kind: Precision
    features: tuple[Feature, ...]


@dataclass(frozen=True)
class Result:
    """What a tree operator gives: a Forest for its scores. `labels` of a classifier, in the order of the columns.

    `labelled`: its own label output is that of the largest column, the first among equals. `reshaped`: it may not be
    a matrix of rows and columns any more.
    """

    forest: Forest
    labels: tuple[Label, ...] = ()
    labelled: bool = False
    reshaped: bool = False


def read_forest(ensemble: Ensemble, columns: Columns) -> Result:
    """Raises NotAForest for what the IR does not hold, BadModelError for trees that are none."""
    if ensemble.aggregate in ("MIN", "MAX"):
        raise NotAForest(f"it aggregates trees by {ensemble.aggregate}, where SUM and AVERAGE are known")
    if ensemble.transform not in _TRANSFORMS:
        raise NotAForest(f"its transform is {ensemble.transform}, where {', '.join(_TRANSFORMS)} are known")
    if ensemble.wide and columns.kind == "float32":
        raise NotAForest("its features are float32, and its thresholds double")
    return _classes(ensemble, columns) if ensemble.labels else Result(_targets(ensemble, columns))


# Scores and labels --------------------------------------------------------------------------------------------------


def _targets(ensemble: Ensemble, columns: Columns) -> Forest:
    """A regressor. Of a single target, ONNX Runtime gives the sum, whatever the transform.

    Of several, one that gets no vote is 0, without its base value.
    """
    if len(ensemble.base) > 1 and not _always_voted(ensemble):
        raise NotAForest("it has base values for targets that get no vote in some rows")
    forest = _scores(ensemble, columns)
    return forest if ensemble.outputs == 1 else replace(forest, transform=_TRANSFORMS[ensemble.transform])


def _classes(ensemble: Ensemble, columns: Columns) -> Result:
    """A classifier. What its label follows from depends on which classes leaves vote for."""
    voted = np.unique(ensemble.votes.output)
    if ensemble.outputs == 1 or len(voted) == 0:
        raise NotAForest("it is a classifier of one class, or without votes")
    if ensemble.outputs == 2 and len(voted) == 1:
        return _one_column(ensemble, columns, int(voted[0]))
    if ensemble.outputs == 2 and len(ensemble.base):
        raise NotAForest("it has base values for two classes that both get votes")
    if len(ensemble.base) not in (0, ensemble.outputs):
        raise NotAForest(f"it has {len(ensemble.base)} base values for {ensemble.outputs} classes")
    forest = replace(_scores(ensemble, columns), transform=_TRANSFORMS[ensemble.transform])
    always = len(ensemble.base) > 0 or _always_voted(ensemble)
    if ensemble.outputs == 2 and not always:
        raise NotAForest("a class of its two gets no vote in some rows")
    # Classes without a vote are not looked at for the label. Of two classes that both get votes, ONNX Runtime takes
    # the second where its score is above 0, and gives 0 or 1 as the label, whatever the labels are. SOFTMAX_ZERO leaves
    # scores of 0 below all others.
    labelled = always and ensemble.outputs > 2 and ensemble.transform != "SOFTMAX_ZERO"
    return Result(forest, ensemble.labels, labelled=labelled)


def _one_column(ensemble: Ensemble, columns: Columns, voted: int) -> Result:
    """Two classes, of which only one gets votes: the score s of the second class, whichever of the two it is.

    ONNX Runtime takes the second class where s > 0, or s > 0.5 where no weight is below 0. Scores of the class 0 come
    out as (-s, s), (1 - s, s) where no weight is below 0, or with LOGISTIC as (sigmoid(-s), sigmoid(s)); SOFTMAX does
    nothing. Scores of the class 1 stand beside a 0, and are transformed as any two scores.
    """
    share = bool((ensemble.votes.weight >= 0).all())
    single = replace(ensemble, outputs=1, votes=replace(ensemble.votes, output=np.zeros_like(ensemble.votes.output)))
    if voted == 1:
        if len(ensemble.base) or not _always_voted(single):
            raise NotAForest("its votes are all for the second of two classes, with base values or not in every row")
        forest = replace(_scores(ensemble, columns), transform=_TRANSFORMS[ensemble.transform])
        return Result(forest, ensemble.labels, labelled=not share and ensemble.transform != "SOFTMAX_ZERO")
    if len(ensemble.base) > 1:
        raise NotAForest("it has two base values for one column of scores")
    forest = _scores(single, columns)
    if ensemble.transform == "LOGISTIC":
        return Result(replace(forest, transform="sigmoid", complement=True), ensemble.labels, labelled=not share)
    if share:
        return Result(replace(forest, complement=True), ensemble.labels, labelled=True)
    return Result(_with_opposite(forest), ensemble.labels, labelled=True)


def _with_opposite(forest: Forest) -> Forest:
    """(-s, s) for the one output s."""
    signs = np.array([-1.0, 1.0])
    return replace(
        forest,
        outputs=2,
        trees=tuple(replace(tree, values=tree.values * signs, output=None) for tree in forest.trees),
        base=forest.base * signs,
        divisor=None if forest.divisor is None else np.repeat(forest.divisor, 2),
    )


def _scores(ensemble: Ensemble, columns: Columns) -> Forest:
    """The sums or averages, without a transform. A divisor of 1 makes the base come last, as ONNX Runtime adds it."""
    nodes = as_categories(ensemble.nodes)
    trees = _Trees(nodes, ensemble.votes, columns, ensemble.outputs).read()
    average = ensemble.aggregate == "AVERAGE"
    base = ensemble.base if len(ensemble.base) else np.zeros(ensemble.outputs)
    return Forest(
        features=columns.width,
        outputs=ensemble.outputs,
        trees=trees,
        base=base,
        divisor=np.full(ensemble.outputs, float(len(trees)) if average else 1.0) if average or base.any() else None,
        precision=columns.kind,
        transform="identity",
        exact_categories=any(tree.categories for tree in trees),
    )


def _always_voted(ensemble: Ensemble) -> bool:
    """Whether each class has a tree all of whose leaves vote for it, so that it gets a vote in every row."""
    seen: set[int] = set()
    for order in orders(ensemble.nodes):
        leaves = ensemble.nodes.leaf[order[ensemble.nodes.mode[order] == LEAF]]
        row, output, _weight = _votes_of(ensemble.votes, leaves)
        pairs = np.unique(np.stack([output, row]), axis=1)[0]
        classes, counts = np.unique(pairs, return_counts=True)
        seen.update(classes[counts == len(leaves)].tolist())
    return len(seen) == ensemble.outputs


# Trees --------------------------------------------------------------------------------------------------------------


class _Trees:
    """Nodes and votes on their way to the IR's trees: decisions for all nodes at once, then tree by tree."""

    def __init__(self, nodes: Nodes, votes: Votes, columns: Columns, outputs: int) -> None:
        self._nodes, self._votes, self._outputs = nodes, votes, outputs
        inner = nodes.mode != LEAF
        if inner.any() and not 0 <= nodes.feature[inner].min() <= nodes.feature[inner].max() < len(columns.features):
            raise BadModelError(f"an ONNX tree ensemble splits on a feature beyond its {len(columns.features)}")
        self._categories, place = with_categories(nodes, columns.features)
        numeric = inner & (place < 0)
        above = numeric & np.isin(nodes.mode, (GT, GTE))
        limits = np.where(np.isin(nodes.mode, (LT, GTE)), largest_below(nodes.value), nodes.value)
        self._threshold, missing_true = np.zeros(len(limits)), nodes.missing_true.copy()
        falls = np.zeros(len(limits), bool)
        for number in np.unique(nodes.feature[numeric]).tolist():
            feature, here = columns.features[number], np.flatnonzero(numeric & (nodes.feature == number))
            self._threshold[here] = feature.draw_back(limits[here], columns.source)
            falls[here] = feature.falls
            missing = feature.run(np.array([np.nan], columns.source))[0]
            if not np.isnan(missing):
                missing_true[here] = (missing <= limits[here]) ^ above[here]
        # Right is where a number above the threshold goes; of a category, where those go that the set names.
        true_right = (above ^ falls) | ((place >= 0) & (nodes.mode != NEQ))
        missing_true |= (place >= 0) & (nodes.mode == NEQ)  # NaN is not equal to anything
        self._missing_right = inner & (missing_true == true_right)
        self._left = np.where(true_right, nodes.false, nodes.true)
        self._right = np.where(true_right, nodes.true, nodes.false)
        self._kind = np.where(numeric, ir.NUMERIC, np.where(place >= 0, ir.CATEGORY, ir.LEAF)).astype(np.uint8)
        self._bound = np.where(numeric, bound_up_to(self._threshold), 0).astype(np.int32)
        self._place = place
        self._new = np.zeros(len(inner), np.int64)  # the place of a node in its tree, once the tree is read
        self._column = np.array([feature.column for feature in columns.features])[np.where(inner, nodes.feature, 0)]

    def read(self) -> tuple[Tree, ...]:
        """The trees. Where each votes for one output only, leaves are single values; else vectors, in all trees."""
        placed = list(orders(self._nodes))
        votes = [_votes_of(self._votes, self._nodes.leaf[order[self._nodes.mode[order] == LEAF]]) for order in placed]
        single = all(len(np.unique(output)) <= 1 for _row, output, _weight in votes)
        return tuple(self._tree(order, vote, single=single) for order, vote in zip(placed, votes, strict=True))

    def _tree(self, order: Ints, votes: tuple[Ints, Ints, NDArray[np.float64]], *, single: bool) -> Tree:
        kind, new = self._kind[order], self._new
        new[order] = np.arange(len(order))
        inner, leaves, splits = kind != ir.LEAF, kind == ir.LEAF, kind == ir.CATEGORY
        payload = np.zeros(len(order), np.int32)
        payload[leaves] = np.arange(leaves.sum())
        payload[splits] = np.arange(splits.sum())
        row, output, weight = votes
        target = int(output[0]) if len(output) else 0
        values = np.zeros((int(leaves.sum()), 1 if single else self._outputs))
        np.add.at(values, (row, np.zeros_like(output) if single else output), weight)
        return Tree(
            kind=kind,
            feature=np.where(inner, self._column[order], 0).astype(np.int32),
            bound=self._bound[order],
            missing_right=self._missing_right[order],
            left=np.where(inner, new[self._left[order]], -1).astype(np.int32),
            right=np.where(inner, new[self._right[order]], -1).astype(np.int32),
            payload=payload,
            values=values,
            categories=tuple(self._categories[place] for place in self._place[order[splits]].tolist()),
            output=target if single else None,
            threshold=self._threshold[order],
        )


def _votes_of(votes: Votes, leaves: Ints) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """The votes of these leaves: the place of the leaf among them, the output, the weight."""
    begin, end = (np.searchsorted(votes.leaf, leaves, side) for side in ("left", "right"))
    counts = end - begin
    row = np.repeat(np.arange(len(leaves)), counts)
    which = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(begin, counts)
    return row, votes.output[which], votes.weight[which]
