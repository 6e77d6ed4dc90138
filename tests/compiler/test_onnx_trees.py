"""ONNX tree operators of every kind, made at random, against ONNX Runtime on the same graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from outrider.compiler.frontends import read_model
from outrider.compiler.model import Model, OnnxGraph
from outrider.compiler.trees.forest import Forest
from outrider.runtime.errors import OutriderError
from outrider.runtime.tensors import derive_label

Array = np.ndarray
EXAMPLES = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MODES = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ", "MEMBER")
VALUES = (0.0, -0.0, 1.0, 2.0, 3.0, 7.0, -1.0, 0.5, 2.5, 1e-45, -1e-45, 3e38, 4096.0, 0.1)
SETS = (0, 1, 2, 3, 7, 15, 16, 29, 30)
FEATURES = 3


class Node:
    """A split with two nodes below it, or a leaf with its votes (output, weight)."""

    def __init__(self, rng: np.random.Generator, depth: int, votes: Callable[[], Any], modes: tuple[str, ...]) -> None:
        self.leaf = depth == 0 or rng.random() < 0.15
        self.votes = votes() if self.leaf else []
        if not self.leaf:
            self.mode, self.feature = modes[rng.integers(len(modes))], int(rng.integers(FEATURES))
            self.value, self.tracks = float(rng.choice(VALUES)), int(rng.random() < 0.4)
            self.members = [float(v) for v in np.unique(rng.choice(SETS, rng.integers(1, 6)))]
            self.true, self.false = (Node(rng, depth - 1, votes, modes) for _ in range(2))

    def walk(self) -> list[Node]:
        return [self] if self.leaf else [self, *self.true.walk(), *self.false.walk()]


def named(trees: list[Node], prefix: str, *, wide: bool) -> dict[str, Any]:
    """The attributes of TreeEnsembleRegressor and TreeEnsembleClassifier; `wide`: as tensors of doubles."""
    nodes = [(tree, number, node) for tree, root in enumerate(trees) for number, node in enumerate(root.walk())]
    number = {id(node): n for _tree, n, node in nodes}
    votes = [(tree, n, output, weight) for tree, n, node in nodes for output, weight in node.votes]
    values = [0.0 if node.leaf else node.value for _t, _n, node in nodes]
    weights = [weight for _t, _n, _output, weight in votes]
    made = {
        "nodes_treeids": [tree for tree, _n, _node in nodes],
        "nodes_nodeids": [n for _t, n, _node in nodes],
        "nodes_modes": ["LEAF" if node.leaf else f"BRANCH_{node.mode}" for _t, _n, node in nodes],
        "nodes_featureids": [0 if node.leaf else node.feature for _t, _n, node in nodes],
        "nodes_truenodeids": [0 if node.leaf else number[id(node.true)] for _t, _n, node in nodes],
        "nodes_falsenodeids": [0 if node.leaf else number[id(node.false)] for _t, _n, node in nodes],
        "nodes_missing_value_tracks_true": [0 if node.leaf else node.tracks for _t, _n, node in nodes],
        f"{prefix}_treeids": [tree for tree, _n, _output, _weight in votes],
        f"{prefix}_nodeids": [n for _t, n, _output, _weight in votes],
        f"{prefix}_ids": [output for _t, _n, output, _weight in votes],
    }
    if wide:
        doubles = {"nodes_values": values, f"{prefix}_weights": weights}
        return made | {f"{name}_as_tensor": numpy_helper.from_array(np.array(v)) for name, v in doubles.items()}
    return made | {"nodes_values": values, f"{prefix}_weights": weights}


def numbered(trees: list[Node], dtype: Any) -> dict[str, Any]:
    """The attributes of TreeEnsemble; a leaf has one vote, and a tree of one leaf is a node with it on both sides."""
    splits = [node for root in trees for node in root.walk() if not node.leaf]
    leaves = [node for root in trees for node in root.walk() if node.leaf]
    alone = [root for root in trees if root.leaf]
    place = {id(node): n for n, node in enumerate(splits + alone)} | {id(node): n for n, node in enumerate(leaves)}
    roots = [(splits + alone).index(root) for root in trees]
    both = [*splits, *alone]
    members = [v for node in splits if node.mode == "MEMBER" for v in (*node.members, np.nan)]
    made: dict[str, Any] = {
        "tree_roots": roots,
        "n_targets": 1 + max(output for leaf in leaves for output, _weight in leaf.votes),
        "nodes_featureids": [0 if node.leaf else node.feature for node in both],
        "nodes_modes": tensor([0 if node.leaf else MODES.index(node.mode) for node in both], np.uint8),
        "nodes_splits": tensor([0.0 if node.leaf else node.value for node in both], dtype),
        "nodes_missing_value_tracks_true": [0 if node.leaf else node.tracks for node in both],
        "leaf_targetids": [leaf.votes[0][0] for leaf in leaves],
        "leaf_weights": tensor([leaf.votes[0][1] for leaf in leaves], dtype),
    }
    for side in ("true", "false"):
        below = [node if node.leaf else getattr(node, side) for node in both]
        made[f"nodes_{side}nodeids"] = [place[id(node)] for node in below]
        made[f"nodes_{side}leafs"] = [int(node.leaf) for node in below]
    return made | ({"membership_values": tensor(members, dtype)} if members else {})


def tensor(values: Any, dtype: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype))


def operator(
    kind: str, attributes: dict[str, Any], *, wide: bool = False, text: bool = False, ml: int = 3
) -> onnx.ModelProto:
    """A graph of one tree operator."""
    floats = TensorProto.DOUBLE if wide else TensorProto.FLOAT
    scores = helper.make_tensor_value_info(
        "scores", floats if kind == "TreeEnsemble" else TensorProto.FLOAT, [None, None]
    )
    label = helper.make_tensor_value_info("picked", TensorProto.STRING if text else TensorProto.INT64, [None])
    outputs = [label, scores] if kind == "TreeEnsembleClassifier" else [scores]
    node = helper.make_node(kind, ["x"], [value.name for value in outputs], domain="ai.onnx.ml", **attributes)
    return graph([node], outputs, wide=wide, ml=ml)


def graph(nodes: list[Any], outputs: list[Any], initializers: Any = (), *, wide: bool = False, ml: int = 3) -> Any:
    given = helper.make_tensor_value_info("x", TensorProto.DOUBLE if wide else TensorProto.FLOAT, ["n", FEATURES])
    made = helper.make_graph(nodes, "g", [given], outputs, initializer=list(initializers))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", ml)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def run(model: onnx.ModelProto, rows: Array) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": rows}), strict=True))


def odd_rows(rng: np.random.Generator, count: int = 60) -> Array:
    """Values that trees compare with, and their neighbours."""
    rows = rng.choice(np.array([*VALUES, np.nan, np.inf, -np.inf, 1.5, 4095, 1e9], np.float32), (count, FEATURES))
    up = np.nextafter(rows, np.float32(np.inf))
    return np.where(rng.random(rows.shape) < 0.2, up, rows).astype(np.float32)


@EXAMPLES
@given(
    st.integers(0, 2**20),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["SUM", "AVERAGE"]),
    st.sampled_from(["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"]),
    st.booleans(),
)
def test_regressors(reads, seed, targets, wide, based, aggregate, transform, single):
    rng = np.random.default_rng(seed)

    def votes() -> Any:
        chosen = [rng.integers(targets)] if single else np.flatnonzero(rng.random(targets) < 0.8)
        chosen = chosen if targets > 1 else [0]
        return [(int(output), float(np.float32(rng.normal()))) for output in chosen]

    trees = [Node(rng, 4, votes, MODES[:6]) for _ in range(rng.integers(1, 5))]
    assume(any(node.votes for root in trees for node in root.walk()))
    attributes = named(trees, "target", wide=wide)
    attributes |= {"n_targets": targets, "aggregate_function": aggregate, "post_transform": transform}
    if based:
        base = rng.normal(size=targets)
        attributes |= {"base_values_as_tensor": tensor(base, float)} if wide else {"base_values": base.tolist()}
    made = operator("TreeEnsembleRegressor", attributes, wide=wide)
    model = read_model(made)
    assume(isinstance(model.payload, Forest))
    reads(made, odd_rows(rng))
    assert model.decides_in == ("float64" if wide else "float32")
    assert model.signature.outputs[0].shape == (None, targets)


@EXAMPLES
@given(
    st.integers(0, 2**20),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(range(2)),
    st.sampled_from(range(4)),
)
def test_tree_ensembles_of_opset_5(reads, seed, targets, wide, aggregate, transform):
    rng = np.random.default_rng(seed)

    def votes() -> Any:
        return [(int(rng.integers(targets)), float(np.float32(rng.normal())))]

    trees = [Node(rng, 4, votes, MODES) for _ in range(rng.integers(1, 5))]
    attributes = numbered(trees, float if wide else np.float32)
    attributes |= {"aggregate_function": aggregate, "post_transform": transform}
    reads(operator("TreeEnsemble", attributes, wide=wide, ml=5), odd_rows(rng))


@EXAMPLES
@given(
    st.integers(0, 2**20),
    st.integers(2, 4),
    st.sampled_from(["one class", "a class a tree", "all classes", "some classes"]),
    st.booleans(),
    st.sampled_from([None, 1, "all"]),
    st.sampled_from(["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"]),
    st.booleans(),
    st.booleans(),
)
def test_classifiers(reads, seed, classes, voting, positive, based, transform, wide, text):
    rng = np.random.default_rng(seed)
    one = int(rng.integers(2))

    def weight() -> float:
        found = float(np.float32(rng.normal()))
        return abs(found) / 4 if positive else found

    def votes_of(tree: int) -> Callable[[], Any]:
        chosen = {
            "one class": lambda: [one],
            "a class a tree": lambda: [tree % classes],
            "all classes": lambda: range(classes),
            "some classes": lambda: np.flatnonzero(rng.random(classes) < 0.7).tolist(),
        }[voting]
        return lambda: [(output, weight()) for output in chosen()]

    trees = [Node(rng, 3, votes_of(tree), MODES[:6]) for tree in range(classes + int(rng.integers(0, 3)))]
    attributes = named(trees, "class", wide=wide) | {"post_transform": transform}
    labels: Any = ["low", "middle", "high", "top"][:classes] if text else [5, 9, 11, 2][:classes]
    attributes["classlabels_strings" if text else "classlabels_int64s"] = labels
    if based is not None:
        base = rng.normal(size=1 if based == 1 else classes)
        attributes |= {"base_values_as_tensor": tensor(base, float)} if wide else {"base_values": base.tolist()}
    made = operator("TreeEnsembleClassifier", attributes, wide=wide, text=text)
    try:
        model = read_model(made)
    except OutriderError as e:
        assume("ONNX Runtime cannot run" not in str(e))
        raise
    assume(isinstance(model.payload, Forest))
    rows = odd_rows(rng)
    reads(made, rows)
    _compare_labels(model, made, rows.astype(float) if wide else rows)


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX_ZERO"])
def test_every_comparison_is_compiled(agree, rng, transform):
    def votes() -> Any:
        return [(int(rng.integers(3)), float(np.float32(rng.normal())))]

    trees = [Node(rng, 5, votes, MODES) for _ in range(12)]
    attributes = numbered(trees, np.float32) | {"post_transform": 3 if transform == "SOFTMAX_ZERO" else 0}
    agree(operator("TreeEnsemble", attributes, ml=5), odd_rows(rng, 200))


def test_sets_that_onnx_runtime_compares_with_truncated_numbers_stay_a_graph(rng):
    tree = Node(rng, 0, lambda: [], MODES)
    tree.leaf, tree.mode, tree.feature, tree.value, tree.tracks, tree.members = False, "MEMBER", 0, 0.0, 0, [1.0, 200.0]
    tree.true, tree.false = Node(rng, 0, lambda: [(0, 1.0)], MODES), Node(rng, 0, lambda: [(0, 2.0)], MODES)
    made = operator("TreeEnsemble", numbered([tree], np.float32), ml=5)
    assert run(made, np.full((1, FEATURES), 200.5, np.float32))["scores"] == 1.0
    payload = read_model(made).payload
    assert isinstance(payload, OnnxGraph)
    assert "truncates" in payload.no_forest


def _compare_labels(model: Model, made: onnx.ModelProto, rows: Array) -> None:
    """The label that a session derives is ONNX Runtime's, but where two results are as good as equal."""
    wanted = run(made, rows)
    scores = np.asarray(wanted["scores"])
    derived = derive_label({"scores": scores}, model.signature)
    ordered = np.sort(scores, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 1e-6
    assert np.array_equal(derived[clear], np.asarray(wanted["picked"])[clear])
    assert (model.signature.outputs[0].name, model.signature.outputs[0].shape) == ("picked", (None,))
