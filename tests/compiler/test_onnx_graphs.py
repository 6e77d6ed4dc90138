"""What exporters put around trees in ONNX graphs: drawn into the Forest where it is exact, told in words where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from outrider.compiler import compile_model
from outrider.compiler.frontends import ReadOptions, read_model
from outrider.compiler.frontends.onnx_features import Feature, Step
from outrider.compiler.model import OnnxGraph
from outrider.compiler.trees.forest import Forest
from outrider.runtime import load
from outrider.runtime.errors import BadModelError, UnsupportedError
from outrider.targets import get_target

Array = np.ndarray
EXAMPLES = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FEATURES = 4
FLOAT, DOUBLE, INT64, TEXT = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.STRING


def stumps(rng: np.random.Generator, outputs: int, prefix: str, features: int = FEATURES) -> dict[str, Any]:
    """Twelve trees of one split by any comparison, whose leaves vote for one output each, all outputs in turn."""
    count = 12
    mode = rng.choice(["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"], count)
    values, splits = rng.normal(size=2 * count), rng.normal(size=count)
    trees = np.arange(count)
    return {
        "nodes_treeids": np.repeat(trees, 3).tolist(),
        "nodes_nodeids": [0, 1, 2] * count,
        "nodes_modes": [name for one in mode for name in (one, "LEAF", "LEAF")],
        "nodes_featureids": [f for one in rng.integers(0, features, count).tolist() for f in (one, 0, 0)],
        "nodes_values": [v for one in splits.tolist() for v in (one, 0.0, 0.0)],
        "nodes_truenodeids": [1, 0, 0] * count,
        "nodes_falsenodeids": [2, 0, 0] * count,
        "nodes_missing_value_tracks_true": rng.integers(0, 2, 3 * count).tolist(),
        f"{prefix}_treeids": np.repeat(trees, 2).tolist(),
        f"{prefix}_nodeids": [1, 2] * count,
        f"{prefix}_ids": np.repeat(trees % outputs, 2).tolist(),
        f"{prefix}_weights": values.astype(np.float32).tolist(),
    }


def regressor(rng: np.random.Generator, given: str = "t", outputs: int = 1, **more: Any) -> onnx.NodeProto:
    attributes = stumps(rng, outputs, "target") | {"n_targets": outputs} | more
    return helper.make_node("TreeEnsembleRegressor", [given], ["y"], domain="ai.onnx.ml", **attributes)


def classifier(rng: np.random.Generator, given: str = "x", **more: Any) -> onnx.NodeProto:
    attributes = stumps(rng, 3, "class") | {"classlabels_int64s": [5, 9, 11]} | more
    return helper.make_node("TreeEnsembleClassifier", [given], ["picked", "y"], domain="ai.onnx.ml", **attributes)


def ml(kind: str, given: list[str], made: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, given, made, domain="ai.onnx.ml", **attributes)


def graph(nodes: Any, outputs: dict[str, Any], constants: dict[str, Any] | None = None, kind: int = FLOAT) -> Any:
    values = [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()]
    given = helper.make_tensor_value_info("x", kind, ["n", FEATURES])
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in (constants or {}).items()]
    made = helper.make_graph(nodes, "g", [given], values, initializer=tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


SCORES: dict[str, Any] = {"y": (FLOAT, [None, None])}


def run(model: onnx.ModelProto, rows: Array) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, {"x": rows})
    return found


# Before the trees ---------------------------------------------------------------------------------------------------


class Chain:
    """Random operators from `x` to `t`, that keep the number of features."""

    def __init__(self, rng: np.random.Generator, *, wide: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Any] = {}
        self._rng, self._kind, self._at = rng, np.float64 if wide else np.float32, "x"
        for step in rng.permutation(["scaler", "imputer", "arithmetic", "arithmetic", "columns", "concat"])[:4]:
            getattr(self, f"_{step}")()
        if wide and rng.random() < 0.5 and self._kind == np.float64:
            self._cast(FLOAT)
        self._add(helper.make_node("Identity", [self._at], ["t"]))

    def _add(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)
        self._at = node.output[0]

    def _name(self) -> str:
        return f"t{len(self.nodes)}"

    def _numbers(self, count: int) -> Array:
        numbers = self._rng.normal(size=count) * 10.0 ** self._rng.integers(-2, 3)
        return np.where(np.abs(numbers) < 1e-3, 1, numbers)

    def _constant(self, values: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = values
        return name

    def _scaler(self) -> None:
        offset, scale = (self._numbers(FEATURES).astype(np.float32).tolist() for _ in range(2))
        self._add(ml("Scaler", [self._at], [self._name()], offset=offset, scale=scale))
        self._kind = np.float32

    def _imputer(self) -> None:
        if self._kind == np.float32:  # ONNX Runtime imputes floats only
            values = self._numbers(FEATURES).astype(np.float32).tolist()
            nan = float("nan")
            self._add(ml("Imputer", [self._at], [self._name()], imputed_value_floats=values, replaced_value_float=nan))

    def _arithmetic(self) -> None:
        name = str(self._rng.choice(["Add", "Sub", "Mul", "Div"]))
        shape = [(FEATURES,), (1, FEATURES), (1,), ()][self._rng.integers(4)]
        values = self._numbers(int(np.prod(shape))).reshape(shape).astype(self._kind)
        self._add(helper.make_node(name, [self._at, self._constant(values)], [self._name()]))

    def _columns(self) -> None:
        places = self._constant(self._rng.permutation(FEATURES).astype(np.int64))
        if self._rng.random() < 0.5:
            self._add(helper.make_node("Gather", [self._at, places], [self._name()], axis=1))
        else:
            self._add(ml("ArrayFeatureExtractor", [self._at, places], [self._name()]))

    def _concat(self) -> None:
        whole, parts = self._at, []
        for places in np.split(self._rng.permutation(FEATURES), [1]):
            self._at = whole
            self._add(helper.make_node("Gather", [whole, self._constant(places)], [self._name()], axis=1))
            number = self._constant(np.array([self._numbers(1)[0]], self._kind))
            self._add(helper.make_node("Mul", [number, self._at], [self._name()]))
            parts.append(self._at)
        self._add(helper.make_node("Concat", parts, [self._name()], axis=1))

    def _cast(self, to: int) -> None:
        self._add(helper.make_node("Cast", [self._at], [self._name()], to=to))
        self._kind = np.float32


@EXAMPLES
@given(st.integers(0, 2**20), st.booleans())
def test_steps_before_the_trees_are_drawn_into_the_thresholds(reads, sums, seed, wide):
    rng = np.random.default_rng(seed)
    chain = Chain(rng, wide=wide)
    made = graph([*chain.nodes, regressor(rng)], SCORES, chain.constants, DOUBLE if wide else FLOAT)
    rows = rng.normal(size=(50, FEATURES))
    rows[rng.random(rows.shape) < 0.1] = np.nan
    model = reads(made, rows)
    assert isinstance(model.payload, Forest)
    if wide and model.decides_in == "float64":
        doubles = _between(model.payload, rng)
        assert np.allclose(sums(model.payload, doubles), run(made, doubles)[0], rtol=1e-5, atol=1e-6)


def _between(forest: Forest, rng: np.random.Generator) -> Array:
    """Each threshold and its neighbours among the doubles."""
    rows = rng.normal(size=(200, forest.features))
    for tree in forest.trees:
        limit = tree.threshold[0]
        near = np.array([limit, np.nextafter(limit, np.inf), np.nextafter(limit, -np.inf)])
        rows[:, tree.feature[0]] = np.where(rng.random(200) < 0.5, rng.choice(near, 200), rows[:, tree.feature[0]])
    return np.nan_to_num(rows)


def test_a_cast_to_float32_before_all_else_decides_in_float32(reads, rng):
    cast = helper.make_node("Cast", ["x"], ["t"], to=FLOAT)
    model = reads(graph([cast, regressor(rng)], SCORES, kind=DOUBLE), rng.normal(size=(20, FEATURES)))
    assert model.decides_in == "float32"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "sub", "mul", "div"]), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=4
    ),
    st.floats(width=32, allow_nan=False),
    st.floats(width=32, allow_nan=False),
    st.sampled_from(["float32", "float64"]),
)
def test_thresholds_are_drawn_back_exactly(steps, limit, x, kind):
    """g(x) against t, and x against T, for any x, and for T and its neighbours."""
    number = np.dtype(kind).type
    feature = Feature(0, tuple(Step(n, number(v if v or n in ("add", "sub") else 1)) for n, v in steps))  # type: ignore[arg-type]
    drawn = feature.draw_back(np.array([limit]), kind)[0]
    points = [number(x)]
    if not np.isnan(drawn):
        with np.errstate(over="ignore"):
            points += [number(drawn), *(np.nextafter(number(drawn), number(end)) for end in (-np.inf, np.inf))]
    for point in points:
        left = point <= drawn
        assert left == ((feature.run(np.array([point]))[0] <= limit) ^ feature.falls)


# Behind the trees ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("operator", ["Sigmoid", "Exp", "Softmax", "Identity", "Cast"])
def test_operators_behind_the_trees(reads, rng, operator, outputs):
    more = {"to": DOUBLE} if operator == "Cast" else {}
    nodes = [regressor(rng, "x", outputs), helper.make_node(operator, ["y"], ["z"], **more)]
    made = graph(nodes, {"z": (DOUBLE if more else FLOAT, [None, outputs])})
    if operator == "Softmax" and outputs == 1:
        assert "Softmax" in no_forest(made)
        return
    model = reads(made, rng.normal(size=(30, FEATURES)))
    assert (model.signature.outputs[0].dtype, model.signature.predict) == ("float32", "z")


def test_constants_behind_the_trees(reads, rng):
    rows = rng.normal(size=(30, FEATURES))
    exponential = [regressor(rng, "x", base_values=[0.5]), helper.make_node("Exp", ["y"], ["e"])]
    times = helper.make_node("Mul", ["e", "c"], ["z"])
    outputs = {"z": (FLOAT, [None, 1])}
    reads(graph([*exponential, times], outputs, {"c": np.float32([2.5])}), rows)
    one = helper.make_node("Mul", ["c", "y"], ["z"])
    reads(graph([regressor(rng, "x"), one], outputs, {"c": np.float32(1)}), rows)
    assert "Mul" in no_forest(graph([regressor(rng, "x"), one], outputs, {"c": np.float32(2)}))
    assert "Mul" in no_forest(graph([*exponential, times], outputs, {"c": np.float32([-2.5])}))


def test_a_vector_of_results(reads, rng):
    nodes = [regressor(rng, "x"), helper.make_node("Reshape", ["y", "s"], ["z"])]
    model = reads(graph(nodes, {"z": (FLOAT, [None])}, {"s": np.int64([-1])}), rng.normal(size=(9, FEATURES)))
    assert model.signature.outputs[0].shape == (None,)


LABELLED: dict[str, Any] = {"picked": (INT64, [None]), "y": (FLOAT, [None, 3])}


def label_nodes() -> dict[str, list[onnx.NodeProto]]:
    """Ways to a label: of the classifier, or looked up by the largest column."""
    return {
        "its own": [],
        "renamed": [
            helper.make_node("Identity", ["picked"], ["a"]),
            helper.make_node("Cast", ["a"], ["label"], to=INT64),
        ],
        "the largest": [
            helper.make_node("ArgMax", ["y"], ["a"], axis=1),
            ml("ArrayFeatureExtractor", ["names", "a"], ["b"]),
            helper.make_node("Reshape", ["b", "s"], ["label"]),
        ],
    }


@pytest.mark.parametrize("way", label_nodes())
@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
def test_labels(reads, rng, tmp_path, way, transform):
    nodes = [classifier(rng, post_transform=transform), *label_nodes()[way]]
    name = "picked" if way == "its own" else "label"
    outputs = {name: (INT64, [None]), "y": (FLOAT, [None, 3])}
    made = graph(nodes, outputs, {"names": np.int64([5, 9, 11]), "s": np.int64([-1])})
    rows = rng.normal(size=(200, FEATURES)).astype(np.float32)
    model = reads(made, rows)
    assert model.signature.class_labels == (5, 9, 11)
    assert [spec.name for spec in model.signature.outputs] == [name, "y"]
    assert model.computed == ("y",)
    if (transform, way) == ("SOFTMAX", "the largest"):
        compile_model(made, out=tmp_path / "m.orb", name="m", calibration=rows)
        with load(tmp_path / "m.orb") as session:
            found, wanted = session.run({"x": rows}), run(made, rows)
            assert np.array_equal(found[name], wanted[0])
            assert np.allclose(found["y"], wanted[1], atol=1e-6)


@pytest.mark.parametrize("text", [False, True])
def test_a_zip_map_becomes_a_matrix(reads, rng, text):
    names = ["low", "middle", "high"]
    own = {"classlabels_strings": names, "classlabels_int64s": None} if text else {}
    given = {k: v for k, v in ({"classlabels_int64s": [5, 9, 11]} | own).items() if v}
    trees = ml("TreeEnsembleClassifier", ["x"], ["picked", "y"], **stumps(rng, 3, "class"), **given)
    zipped = ml("ZipMap", ["y"], ["zipped"], **given)
    made = graph([trees, zipped], {"picked": (TEXT if text else INT64, [None]), "y": (FLOAT, [None, 3])})
    key, value = TEXT if text else INT64, helper.make_tensor_type_proto(FLOAT, [])
    made.graph.output[1].CopyFrom(
        helper.make_value_info("zipped", helper.make_sequence_type_proto(helper.make_map_type_proto(key, value)))
    )
    rows = rng.normal(size=(30, FEATURES)).astype(np.float32)
    model = reads(made, rows)
    wanted = [[row[label] for label in model.signature.class_labels] for row in run(made, rows)[1]]
    assert np.allclose(model.reference({"x": rows})["zipped"], wanted)
    assert model.signature.class_labels == (tuple(names) if text else (5, 9, 11))
    named = read_model(made, ReadOptions(class_labels=("a", "b", "c"), feature_names=tuple("wxyz"))).signature
    assert (named.class_labels, named.feature_names) == (("a", "b", "c"), tuple("wxyz"))
    assert named.outputs[0].dtype == "string"


def test_two_zip_maps_and_no_other_opset(reads, rng):
    """One opset is all that exporters of trees may import; of two maps, neither tells the class labels."""
    own = {"classlabels_int64s": [5, 9, 11]}
    trees = ml("TreeEnsembleClassifier", ["x"], ["picked", "y"], **stumps(rng, 3, "class"), **own)
    maps = [ml("ZipMap", ["y"], [name], **own) for name in ("a", "b")]
    made = graph([trees, *maps], {"a": (FLOAT, [None, 3]), "b": (FLOAT, [None, 3])})
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, [])))
    for value in made.graph.output:
        value.type.CopyFrom(kind)
    rows = rng.normal(size=(5, FEATURES)).astype(np.float32)
    both = read_model(made)
    assert isinstance(both.payload, OnnxGraph)
    assert both.signature.class_labels == ()
    assert np.array_equal(both.reference({"x": rows})["a"], both.reference({"x": rows})["b"])
    del made.graph.output[1], made.graph.node[2], made.opset_import[0]
    assert reads(made, rows).signature.class_labels == (5, 9, 11)


# What stays a graph -------------------------------------------------------------------------------------------------


def no_forest(made: onnx.ModelProto) -> str:
    """Why it stays a graph."""
    payload = read_model(made).payload
    assert isinstance(payload, OnnxGraph)
    return payload.no_forest


def kept_graphs(rng: np.random.Generator) -> dict[str, onnx.ModelProto]:
    node = helper.make_node
    two = stumps(rng, 2, "class") | {"classlabels_int64s": [5, 9]}
    positive = stumps(rng, 1, "class") | {"classlabels_int64s": [5, 9], "post_transform": "LOGISTIC"}
    positive["class_weights"] = np.abs(positive["class_weights"]).tolist()

    own = stumps(rng, 3, "class") | {"classlabels_int64s": [5, 9, 11]}
    renamed = ml("TreeEnsembleClassifier", ["x"], ["label", "other"], **own)

    def pair(attributes: dict[str, Any]) -> onnx.ModelProto:
        trees = ml("TreeEnsembleClassifier", ["x"], ["picked", "y"], **attributes)
        return graph([trees], {"picked": (INT64, [None]), "y": (FLOAT, [None, 2])})

    return {
        "no tree operators": graph([node("Relu", ["x"], ["y"])], SCORES),
        "MAX": graph([regressor(rng, "x", aggregate_function="MAX")], SCORES),
        "PROBIT": graph([regressor(rng, "x", post_transform="PROBIT")], SCORES),
        "2 tree operators": graph(
            [regressor(rng, "x"), node("Identity", ["y"], ["z"]), renamed], {"label": (INT64, [None]), "z": SCORES["y"]}
        ),
        "Softmax along": graph(
            [regressor(rng, "x", 2), node("Reshape", ["y", "s"], ["z"]), node("Softmax", ["z"], ["p"])],
            {"p": (FLOAT, [None, None])},
            {"s": np.int64([-1, 2])},
        ),
        "operator Normalizer": graph([ml("Normalizer", ["x"], ["t"], norm="L2"), regressor(rng)], SCORES),
        "operator Abs": graph([node("Abs", ["x"], ["t"]), regressor(rng)], SCORES),
        "constants that are 0": graph([node("Mul", ["x", "c"], ["t"]), regressor(rng)], SCORES, {"c": np.float32([0])}),
        "a constant for each row": graph(
            [node("Add", ["x", "c"], ["t"]), regressor(rng)], SCORES, {"c": np.ones((2, 1), np.float32)}
        ),
        "between two things": graph([node("Add", ["x", "x"], ["t"]), regressor(rng)], SCORES),
        "other than NaN": graph(
            [ml("Imputer", ["x"], ["t"], imputed_value_floats=[1.0], replaced_value_float=0.0), regressor(rng)], SCORES
        ),
        "one result": graph([regressor(rng, "x"), node("Exp", ["y"], ["z"])], {**SCORES, "z": (FLOAT, [None, None])}),
        "follows from it": pair(two),
        "the label that follows": pair(positive),
        "ArgMax": graph(
            [classifier(rng), node("ArgMax", ["y"], ["a"], axis=1, select_last_index=1)], {"a": (INT64, [None, 1])}
        ),
    }


@pytest.mark.parametrize("message", kept_graphs(np.random.default_rng(0)))
def test_other_graphs_stay_graphs_and_say_why(message):
    assert message in no_forest(kept_graphs(np.random.default_rng(0))[message])


def test_why_a_graph_is_no_forest_is_told_where_nothing_else_compiles_it(rng, tmp_path):
    made = graph([regressor(rng, "x", aggregate_function="MIN")], SCORES)
    report = compile_model(made, out=tmp_path / "m.orb", name="m")
    outcomes = {c.id: c.outcome for c in report.manifest.candidates}
    assert (outcomes["ort"], outcomes["native"]) == ("chosen", "not eligible")
    assert all(outcome in ("failed", "not eligible") for key, outcome in outcomes.items() if key != "ort")
    with pytest.raises(UnsupportedError, match="aggregates trees by MIN"):
        compile_model(made, target=get_target("riscv64"), out=tmp_path / "n.orb", name="m")


BROKEN: dict[str, Any] = {
    "in a circle": {"nodes_truenodeids": [0, 0, 0] * 12},
    "node that it does not have": {"nodes_falsenodeids": [7, 0, 0] * 12},
    "tree that it does not have": {"target_treeids": [99] * 24},
    "two of one name": {"nodes_nodeids": [0, 1, 1] * 12},
    "nodes_values, where 36": {"nodes_values": [1.0]},
    "output beyond its 1": {"target_ids": [3] * 24},
    "not finite": {"target_weights": [float("inf")] * 24},
    "feature beyond its 4": {"nodes_featureids": [40, 0, 0] * 12},
    "contradict each other": {"nodes_modes": ["BRANCH_ODD"] * 36},
    "aggregation or transform": {"post_transform": "CUBE"},
    "base values": {"base_values": [1.0, 2.0]},
}


@pytest.mark.parametrize("message", BROKEN)
def test_trees_that_are_none(rng, message):
    attributes = stumps(rng, 1, "target") | {"n_targets": 1} | BROKEN[message]
    with pytest.raises(BadModelError, match=message):
        read_model(graph([ml("TreeEnsembleRegressor", ["x"], ["y"], **attributes)], SCORES))
