"""The nodes of an ONNX tree operator in one numbering, and whether they are trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadModelError

Ints = NDArray[np.int64]

LEQ, LT, GTE, GT, EQ, NEQ, MEMBER, LEAF = range(8)


class NotAForest(Exception):
    """Why an ONNX graph is not read as a Forest, in words. It stays what it is: a graph."""


@dataclass(frozen=True)
class Nodes:
    """The nodes of all trees [n], leaves included; `roots` [trees] in the order in which trees are added.

    `mode` is one of LEQ … LEAF, `value` what a node compares with, `members` the set of a MEMBER node. `true` and
    `false` are children, `missing_true` says whether NaN goes the way of `true` though it compares false. `leaf` is
    the number of a leaf, by which it votes; copies of a leaf share it.
    """

    mode: NDArray[np.uint8]
    feature: Ints
    value: NDArray[np.float64]
    true: Ints
    false: Ints
    missing_true: NDArray[np.bool_]
    leaf: Ints
    roots: Ints
    members: Mapping[int, frozenset[float]] = field(default_factory=dict)


def settle(nodes: Nodes) -> Nodes:
    """The nodes, with what exporters share between branches undone. Raises BadModelError where they are no trees."""
    settled = _without_twins(_with_sets(nodes))
    for _order in orders(settled):  # raises for what is no tree
        pass
    return settled


def _without_twins(nodes: Nodes) -> Nodes:
    """Nodes with one leaf on both sides become that leaf: so a tree of a single leaf is written in opset 5."""
    true, false = nodes.leaf[nodes.true], nodes.leaf[nodes.false]
    ends = (nodes.mode[nodes.true] == LEAF) & (nodes.mode[nodes.false] == LEAF)
    twins = (nodes.mode != LEAF) & ends & (true == false)
    mode = np.where(twins, LEAF, nodes.mode).astype(np.uint8)
    return replace(nodes, mode=mode, leaf=np.where(twins, true, nodes.leaf))


def _with_sets(nodes: Nodes) -> Nodes:
    """Chains of tests of one feature for equality that all lead to one node become one test for membership.

    `x == a ? t : x == b ? t : f` is `x in {a, b} ? t : f`. So exporters write categories, and t may be shared.
    """
    chained = np.flatnonzero(nodes.mode == EQ)
    below = nodes.false[chained]
    same = (nodes.mode[below] == EQ) & (nodes.feature[below] == nodes.feature[chained])
    joined = {node: int(nodes.false[node]) for node in chained[same].tolist() if _one_goal(nodes, node)}
    heads = sorted(set(joined) - set(joined.values()))
    if not heads:
        return nodes
    mode, false, missing = nodes.mode.copy(), nodes.false.copy(), nodes.missing_true.copy()
    members = dict(nodes.members)
    for head in heads:
        chain = [head]
        while chain[-1] in joined:
            chain.append(joined.pop(chain[-1]))  # a link serves once, so that circles end
        mode[head], false[head] = MEMBER, nodes.false[chain[-1]]
        missing[head] = nodes.missing_true[chain].any()
        members[head] = frozenset(nodes.value[chain].tolist())
    return replace(nodes, mode=mode, false=false, missing_true=missing, members=members)


def _one_goal(nodes: Nodes, node: int) -> bool:
    """Whether a node and the one below it lead to the same node, or leaf, where they hold."""
    goals = nodes.true[[node, nodes.false[node]]]
    return goals[0] == goals[1] or bool((nodes.mode[goals] == LEAF).all() and np.ptp(nodes.leaf[goals]) == 0)


def orders(nodes: Nodes) -> Iterator[Ints]:
    """The nodes of each tree, its root first. Raises BadModelError where one node is met twice."""
    met = np.zeros(len(nodes.mode), bool)
    for root in nodes.roots.tolist():
        level = np.array([root])
        order = []
        while len(level):
            if met[level].any() or len(np.unique(level)) < len(level):
                raise BadModelError(
                    "a tree of the ONNX model is not a tree: a node is met twice, or points in a circle"
                )
            met[level] = True
            order.append(level)
            inner = level[nodes.mode[level] != LEAF]
            level = np.concatenate([nodes.true[inner], nodes.false[inner]])
        yield np.concatenate(order)
