"""Tests for equality and membership in ONNX trees: as categories where the numbers are small and whole, else as two
comparisons each, for which the branch of the unequal numbers is there twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from outrider.compiler.frontends.onnx_features import Feature
from outrider.compiler.frontends.onnx_nodes import EQ, LEAF, LEQ, LT, MEMBER, NEQ, Ints, Nodes, NotAForest
from outrider.compiler.trees.forest import CategorySplit

_LARGEST = 4095  # a split by category holds a bit for each number below its largest
_FIELDS = ("mode", "feature", "value", "true", "false", "missing_true", "leaf")
_GROWTH = 4  # how many times as many nodes there may be with the copies


def as_categories(nodes: Nodes) -> Nodes:
    """The nodes, with every test for equality that is left a test for whole numbers from 0 to 4095.

    Raises NotAForest where there would be too many nodes for that.
    """
    tests = np.flatnonzero(np.isin(nodes.mode, (EQ, NEQ, MEMBER))).tolist()
    odd = [node for node in tests if _odd(_numbers(nodes, node))]
    return _Copies(nodes).rewrite(odd) if odd else nodes


def with_categories(nodes: Nodes, features: Sequence[Feature]) -> tuple[list[CategorySplit], Ints]:
    """The splits by category, and for each node the place of its own among them, -1 for none.

    The set goes right. Raises NotAForest where the feature is not a column of the input as it is.
    """
    splits: list[CategorySplit] = []
    place = np.full(len(nodes.mode), -1)
    for node in np.flatnonzero(np.isin(nodes.mode, (EQ, NEQ, MEMBER))).tolist():
        if features[int(nodes.feature[node])].steps:
            raise NotAForest("it tests a feature for equality that was computed from the input")
        tracks = bool(nodes.missing_true[node]) and nodes.mode[node] != NEQ
        place[node] = len(splits)
        numbers = frozenset(int(value) for value in _numbers(nodes, node))
        splits.append(CategorySplit(right=numbers, left=frozenset(), other_right=False, missing_right=tracks))
    return splits, place


def _numbers(nodes: Nodes, node: int) -> frozenset[float]:
    return nodes.members[node] if nodes.mode[node] == MEMBER else frozenset((float(nodes.value[node]),))


def _odd(numbers: Iterable[float]) -> list[float]:
    """Those that a split by category does not take, the least first."""
    return sorted(value for value in numbers if not (0 <= value <= _LARGEST and value == int(value)))


class _Copies:
    """Nodes as growing lists."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._lists = {name: getattr(nodes, name).tolist() for name in _FIELDS}
        self._members = dict(nodes.members)
        self._limit = _GROWTH * len(nodes.mode) + 64

    def rewrite(self, odd: list[int]) -> Nodes:
        """Rewrite the odd nodes, and what of them is copied."""
        waiting = list(odd)
        while waiting:
            node = waiting.pop()
            member = self._lists["mode"][node] == MEMBER
            waiting += self._split_set(node) if member else self._split_equal(node)
        arrays = {name: np.array(values, getattr(self._nodes, name).dtype) for name, values in self._lists.items()}
        return replace(self._nodes, **arrays, members=self._members)

    def _split_equal(self, node: int) -> list[int]:
        """`x == t ? a : b` becomes `x < t ? b : x <= t ? a : b`. Returns the odd nodes among the copies."""
        equal, other, tracks = (self._lists[name][node] for name in ("true", "false", "missing_true"))
        if self._lists["mode"][node] == NEQ:
            equal, other, tracks = other, equal, False
        copied, odd = self._copy(other)
        upper = self._add(node, mode=LEQ, true=equal, false=copied, missing_true=tracks)
        self._set(node, mode=LT, true=other, false=upper, missing_true=not tracks)
        return odd

    def _split_set(self, node: int) -> list[int]:
        """`x in {t, …} ? a : b` becomes `x == t ? a : x in {…} ? a : b`, for an odd t. Returns what is odd then."""
        members = self._members.pop(node)
        first = _odd(members)[0]
        rest = members - {first}
        odd = [node]
        if rest:
            copied, more = self._copy(self._lists["true"][node])
            below = self._add(node, true=copied)
            self._members[below] = rest
            self._set(node, false=below)
            odd += [*more, *([below] if _odd(rest) else [])]
        self._set(node, mode=EQ, value=first)
        return odd

    def _copy(self, root: int) -> tuple[int, list[int]]:
        """A copy of all that is below a node, and which of the copied nodes are odd."""
        copies: dict[int, int] = {}
        waiting, odd = [root], []
        while waiting:
            node = waiting.pop()
            copies[node] = copy = self._add(node)
            mode = self._lists["mode"][node]
            if mode == MEMBER:
                self._members[copy] = self._members[node]
            if mode in (EQ, NEQ, MEMBER):
                value = self._lists["value"][node]
                odd += [copy] if _odd(self._members[node] if mode == MEMBER else (value,)) else []
            if mode != LEAF:
                waiting += [self._lists["true"][node], self._lists["false"][node]]
        for node, copy in copies.items():
            if self._lists["mode"][node] != LEAF:
                self._set(copy, **{side: copies[self._lists[side][node]] for side in ("true", "false")})
        return copies[root], odd

    def _add(self, node: int, **changes: Any) -> int:
        """A new node, like the given one but for the changes."""
        new = len(self._lists["mode"])
        if new >= self._limit:
            raise NotAForest("it tests for equality with numbers other than 0 to 4095 too often")
        for values in self._lists.values():
            values.append(values[node])
        self._set(new, **changes)
        return new

    def _set(self, node: int, **changes: Any) -> None:
        for name, value in changes.items():
            self._lists[name][node] = value
