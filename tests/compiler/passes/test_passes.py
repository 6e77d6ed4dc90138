"""What all passes hold to: the interface stays, the argument stays, and so do the values."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.compiler.passes import PASSES, TIDY, get_pass, tidy
from outrider.compiler.passes.fp16 import fp16
from outrider.compiler.passes.versions import raised
from outrider.runtime.errors import BadModelError, UnsupportedError

EXAMPLES = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EXACT = sorted(set(PASSES) - {"fp16"})


@pytest.mark.parametrize("name", EXACT)
@EXAMPLES
@given(seed=st.integers(0, 2**16))
def test_a_random_graph_stays_what_it_is(graphs: ModuleType, name: str, seed: int) -> None:
    made = graphs.Random(seed)
    before = made.model.SerializeToString()
    graphs.assert_same(made.model, get_pass(name)(made.model), made.feed, rtol=1e-3, atol=1e-3)
    assert made.model.SerializeToString() == before


@EXAMPLES
@given(seed=st.integers(0, 2**16))
def test_all_passes_together_keep_the_values(graphs: ModuleType, seed: int) -> None:
    made = graphs.Random(seed)
    after = tidy(made.model)
    graphs.assert_same(made.model, after, made.feed, rtol=1e-3, atol=1e-3)
    assert not {"BatchNormalization", "Dropout", "Max", "Min"} & set(graphs.kinds(after))
    again = tidy(after)
    assert graphs.kinds(again) == graphs.kinds(after)


@EXAMPLES
@given(seed=st.integers(0, 2**16))
def test_float16_comes_close(graphs: ModuleType, seed: int) -> None:
    made = graphs.Random(seed)
    after = fp16(made.model)
    onnx.checker.check_model(after, full_check=True)
    assert graphs.interface(after) == graphs.interface(made.model)
    for found, wanted in zip(graphs.run(after, made.feed), graphs.run(made.model, made.feed), strict=True):
        assert np.abs(found - wanted).max() <= 0.02 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("name", PASSES)
def test_bytes_are_the_same_each_time(graphs: ModuleType, name: str) -> None:
    made = graphs.Random(5).model
    first, second = (get_pass(name)(made).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def branching(graphs: ModuleType) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """If and Loop whose bodies read what is outside, by names that passes would like to remove."""
    g = graphs
    then = onnx.helper.make_graph(
        [g.node("Identity", ["same"], "t1"), g.node("Mul", ["t1", "two"], "then")], "t", [], [g.value("then", [2, 3])]
    )
    other = onnx.helper.make_graph(
        [g.node("Dropout", ["activated"], "e1"), g.node("Add", ["e1", "total"], "other")],
        "e",
        [],
        [g.value("other", [2, 3])],
    )
    body = onnx.helper.make_graph(
        [
            g.node("Identity", ["keep"], "keep_on"),
            g.node("Add", ["kept", "two"], "step"),
            g.node("Mul", ["step", "scale"], "grown"),
            g.node("Identity", ["copy"], "seen"),
        ],
        "b",
        [g.value("i", [], g.INT64), g.value("keep", [], g.BOOL), g.value("kept", [2, 3])],
        [g.value("keep_on", [], g.BOOL), g.value("grown", [2, 3]), g.value("seen", [2, 3])],
    )
    nodes = [
        g.node("Identity", ["x"], "same"),
        g.node("Identity", ["same"], "copy"),
        g.node("Clip", ["x", "zero"], "activated"),
        g.node("Add", ["two", "two"], "total"),
        g.node("Mul", ["total", "half"], "scale"),
        g.node("ReduceSum", ["x"], "sum", keepdims=0),
        g.node("Greater", ["sum", "zero"], "positive"),
        g.node("If", ["positive"], "chosen", then_branch=then, else_branch=other),
        g.node("Loop", ["times", "", "chosen"], ["looped", "all"], body=body),
        g.node("Identity", ["looped"], "y"),
    ]
    constants = {
        "two": np.float32(2),
        "half": np.float32(0.5),
        "zero": np.float32(0),
        "times": np.array(3, np.int64),
        "unused": np.zeros(5, np.float32),
    }
    made = g.model(nodes, {"x": [2, 3]}, {"y": [2, 3], "all": [3, 2, 3]}, constants)
    return made, {"x": np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)}


@pytest.mark.parametrize("name", [*PASSES, "all", "all and fp16"])
def test_what_subgraphs_read_from_outside_stays(graphs: ModuleType, name: str) -> None:
    made, feed = branching(graphs)
    after = get_pass(name)(made) if name in PASSES else tidy(made, TIDY if name == "all" else (*TIDY, "fp16"))
    for sign in (1, -1):
        signed = {"x": sign * np.abs(feed["x"])}
        graphs.assert_same(made, after, signed, rtol=2e-3 if "fp16" in name else 1e-6)


def test_simplifying_reaches_into_subgraphs(graphs: ModuleType) -> None:
    after = tidy(branching(graphs)[0])
    bodies = [one.g for node in after.graph.node for one in node.attribute if one.HasField("g")]
    assert [[node.op_type for node in body.node] for body in bodies] == [
        ["Add"],
        ["Mul"],
        ["Identity", "Add", "Mul", "Identity"],
    ]
    assert "Identity" not in graphs.kinds(after)
    assert "unused" not in graphs.constants(after)


def test_old_files_list_initialisers_as_inputs(graphs: ModuleType) -> None:
    nodes = [graphs.node("Add", ["a", "b"], "c"), graphs.node("Mul", ["x", "c"], "y")]
    constants = {"a": np.float32([1, 2]), "b": np.float32([3, 4])}
    made = graphs.model(nodes, {"x": [2], "a": [2], "b": [2]}, {"y": [2]}, constants, opset=8, ir_version=3)
    after = tidy(made)
    graphs.assert_same(made, after, {"x": np.float32([5, 6])})
    assert graphs.kinds(after) == ["Mul"]
    later = graphs.model(nodes, {"x": [2], "a": [2], "b": [2]}, {"y": [2]}, constants)
    kept = tidy(later)  # from IR version 4 on, such inputs are there to be overridden
    assert graphs.kinds(kept) == ["Add", "Mul"]
    graphs.assert_same(later, kept, {"x": np.float32([5, 6]), "a": np.float32([7, 8])})


def test_weights_in_other_files_are_left_alone_or_asked_for(graphs: ModuleType) -> None:
    made = graphs.model(
        [graphs.node("Identity", ["x"], "same"), graphs.node("MatMul", ["same", "w"], "y")],
        {"x": [1, 2]},
        {"y": [1, 2]},
        {"w": np.eye(2, dtype=np.float32), "twin": np.eye(2, dtype=np.float32)},
    )
    for tensor in made.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{tensor.name}.bin")
    after = tidy(made)
    assert graphs.kinds(after) == ["MatMul"]
    assert [entry.value for entry in after.graph.initializer[0].external_data] == ["w.bin"]
    with pytest.raises(BadModelError, match="'w' is in another file"):
        fp16(made)


def test_functions_of_the_model_are_written_out(graphs: ModuleType) -> None:
    made = graphs.model([], {"x": [3]}, {"y": [3]}, {"c": np.float32([1, 2, 3])})
    made.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    body = [graphs.node("Mul", ["a", "b"], "p"), graphs.node("Identity", ["p"], "q")]
    made.functions.append(
        onnx.helper.make_function("mine", "Scaled", ["a", "b"], ["q"], body, [onnx.helper.make_opsetid("", 17)])
    )
    made.graph.node.append(graphs.node("Scaled", ["x", "c"], "y", domain="mine"))
    after = tidy(made)
    assert graphs.kinds(after) == ["Mul"]
    graphs.assert_same(made, after, {"x": np.float32([4, 5, 6])})


@pytest.mark.timeout(60)
def test_large_models_take_seconds(graphs: ModuleType) -> None:
    rng, count = np.random.default_rng(0), 2000
    nodes, at = [], "x"
    for i in range(count):
        nodes += [graphs.node("Identity", [at], f"i{i}"), graphs.node("Add", [f"i{i}", f"c{i}"], f"a{i}")]
        nodes.append(graphs.node("Clip", [f"a{i}", "zero", "six"], f"r{i}"))
        at = f"r{i}"
    nodes.append(graphs.node("MatMul", [at, "large"], "y"))
    constants = {f"c{i}": rng.normal(size=4).astype(np.float32) for i in range(count)}
    constants |= {
        "zero": np.float32(0),
        "six": np.float32(6),
        "large": rng.normal(size=(4, 1_000_000)).astype(np.float32),
    }
    made = graphs.model(nodes, {"x": [1, 4]}, {"y": [1, 1_000_000]}, constants)
    after = tidy(made)
    assert len(after.graph.node) == 2 * count + 1


def test_an_opset_is_raised_only_where_it_is_lower(graphs: ModuleType) -> None:
    nodes = [graphs.node("Clip", ["x"], "c", min=-1.0, max=1.0), graphs.node("Dropout", ["c"], "y", ratio=0.5)]
    made = graphs.model(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, opset=9)
    after = raised(made)
    assert after.opset_import[0].version == 13
    graphs.assert_same(made, after, {"x": np.float32([[-2, 0, 2]])})
    assert raised(after, 11) == after
    made.graph.node[0].op_type = "Klip"
    with pytest.raises(UnsupportedError, match="from version 9 of ONNX's operators to 13"):
        raised(made)
