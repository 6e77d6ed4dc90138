"""`outrider debug --bisect`: it finds the tensor that diverges, and says where that comes from."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from outrider.compiler import making
from outrider.compiler.debug import parts
from outrider.compiler.debug.finding import Bisection, Tally, TensorError, describe
from outrider.compiler.debug.graph import module_of, origins
from outrider.compiler.debug.parts import _search, part_of
from outrider.compiler.debug.tensors import compare_tensors
from outrider.compiler.passes.shapes import infer
from outrider.runtime.bundle import file_entry, open_bundle, write_bundle
from outrider.runtime.cli import main
from outrider.runtime.errors import UnsupportedError
from outrider.targets import get_target

Array = np.ndarray
RNG = np.random.default_rng(11)
WEIGHTS = {f"w{number}": RNG.normal(size=(8, 8)).astype(np.float32) / 3 for number in range(4)}
SCOPES = {
    "pkg.torch.onnx.name_scopes": "['', 'body', 'body.2', 'linear_2']",
    "pkg.torch.onnx.class_hierarchy": "['net.Net', 'net.Body', 'torch.nn.modules.linear.Linear', 'linear']",
}


def net(**weights: Array) -> onnx.ModelProto:
    """Four layers, each a product and a Relu: h0, r0, h1, …; the third is noted as a torch module's."""
    nodes, given = [], "x"
    for number in range(4):
        nodes.append(helper.make_node("MatMul", [given, f"w{number}"], [f"h{number}"], name=f"layer{number}"))
        nodes.append(helper.make_node("Relu", [f"h{number}"], [f"r{number}"], name=f"relu{number}"))
        given = f"r{number}"
    for key, text in SCOPES.items():
        nodes[4].metadata_props.add(key=key, value=text)
    held = [numpy_helper.from_array(value, key) for key, value in (WEIGHTS | weights).items()]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("x", "r3")]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and rows as the current folder; `far.npz` are rows ten times as large."""
    rows = RNG.normal(size=(32, 8)).astype(np.float32)
    onnx.save(net(), tmp_path / "net.onnx")
    np.savez(tmp_path / "rows.npz", x=rows)
    np.savez(tmp_path / "far.npz", x=rows * 10)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compiled(*arguments: str) -> None:
    base = ["compile", "net.onnx", "-o", "net.orb", "--calibration", "rows.npz", "--target", "aarch64"]
    assert main([*base, *arguments]) == 0


def bisected(capsys: Any, *arguments: str) -> Bisection:
    capsys.readouterr()
    assert main(["debug", "--bisect", "net.orb", "net.onnx", "--json", *arguments]) == 0
    return msgspec.json.decode(capsys.readouterr().out, type=Bisection)


def with_artifact(data: bytes) -> None:
    """Put other bytes in the place of the bundle's first artifact."""
    bundle = open_bundle("net.orb")
    entry = bundle.manifest.artifacts[0]
    stored = file_entry(entry.path, data)
    changed = msgspec.structs.replace(entry, size=stored.size, sha256=stored.sha256)
    manifest = msgspec.structs.replace(bundle.manifest, artifacts=(changed, *bundle.manifest.artifacts[1:]))
    files = {path: bundle.read(path) for path in bundle.files()} | {entry.path: data}
    write_bundle("net.orb", manifest, files)


def test_nothing_diverges_in_what_is_the_source_itself(here: Path, capsys: Any) -> None:
    compiled("--backend", "ort")
    found = bisected(capsys)
    assert (found.method, found.first, found.outputs) == ("tensors", None, 0.0)
    assert [one.tensor for one in found.tensors] == ["h0", "r0", "h1", "r1", "h2", "r2", "h3", "r3"]
    assert main(["debug", "--bisect", "net.orb", "net.onnx"]) == 0
    assert "nothing is beyond 0.001" in capsys.readouterr().out


def test_the_operator_whose_weights_were_broken(here: Path, capsys: Any) -> None:
    compiled("--backend", "ort")
    with_artifact(net(w2=WEIGHTS["w2"] * np.float32(1.5)).SerializeToString())
    first = bisected(capsys).first
    assert first is not None
    assert (first.tensor, first.operator, first.node) == ("h2", "MatMul", "layer2")
    assert first.module == "body.2 (Linear)"
    assert (first.error, first.before) == (pytest.approx(0.5, rel=1e-4), 0.0)
    assert main(["debug", "--bisect", "net.orb", "net.onnx"]) == 0
    assert "of MatMul layer2, of the torch module body.2 (Linear): error 0.5, before 0" in capsys.readouterr().out


def test_the_quantised_tensor_whose_range_was_too_small(here: Path, capsys: Any) -> None:
    compiled("--backend", "ort", "--precision", "int8")
    assert bisected(capsys).first is None
    first = bisected(capsys, "--calibration", "far.npz").first
    assert first is not None
    assert (first.tensor, first.operator, first.quantised) == ("x", "input", True)
    assert first.error is not None
    assert first.error > 0.5
    fine = bisected(capsys, "--beyond", "0.0001")
    assert fine.first is not None
    # What quantising clips, the Relu's work done, is not held against its unclipped form.
    assert all(one.error is not None and one.error < 0.1 for one in fine.tensors)


def test_tensors_in_float16(here: Path, capsys: Any) -> None:
    compiled("--backend", "ort", "--precision", "fp16")
    found = bisected(capsys)
    assert found.first is None
    assert any(one.found_as.endswith("_half") for one in found.tensors)
    assert all(one.error is not None and 0 < one.error < 0.01 for one in found.tensors)


class AtOnce:
    """A workshop in this process, whose start takes no time."""

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, entry: str, *arguments: Any, seconds: float) -> Any:
        return pkgutil.resolve_name(entry)(*arguments)


@pytest.mark.parametrize(("backend", "package"), [("openvino", "nncf"), ("ncnn", "pnnx")])
def test_an_engine_that_shows_nothing_within(
    here: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    require_package: Callable[[str], None],
    backend: str,
    package: str,
) -> None:
    require_package(backend)
    require_package(package)
    monkeypatch.setattr(making, "Workshop", AtOnce)
    monkeypatch.setattr(parts, "Workshop", AtOnce)
    compiled("--backend", backend, "--precision", "fp16" if backend == "ncnn" else "int8")
    found = bisected(capsys, "--beyond", "1e-9")
    assert found.method == "parts"
    assert found.tensors[-1].error == pytest.approx(found.outputs, rel=0.1)
    assert found.first is not None
    assert (found.first.tensor, found.first.before) == ("h0", 0.0)
    assert [one.tensor for one in found.tensors] == ["h0", "r0", "r1", "r3"]


def test_a_part_that_cannot_be_built_is_infinitely_far_off(here: Path, capsys: Any, monkeypatch: Any) -> None:
    """As where a backend knows no operator of it: that is the place, then, with the reason."""

    class Failing(AtOnce):
        def call(self, entry: str, *arguments: Any, seconds: float) -> Any:
            if any(
                node.op_type == "Relu"
                for node in onnx.load_model_from_string(arguments[1].model.payload.data).graph.node
            ):
                raise UnsupportedError("it knows no Relu")
            return super().call(entry, *arguments, seconds=seconds)

    compiled("--backend", "ort")
    monkeypatch.setattr(parts, "Workshop", Failing)
    calls = ({"x": np.load("rows.npz")["x"][:4]},)
    recipe = parts.Recipe(open_bundle("net.orb").manifest.candidates[0], get_target("host"), calls, calls, 0.5)
    told = parts.bisect_parts(net(), recipe)
    assert [(one.tensor, one.error, one.problem) for one in told][:2] == [
        ("h0", 0.0, None),
        ("r0", None, "it knows no Relu"),
    ]
    assert "it fails, it knows no Relu, before 0" in str(told[1])


@pytest.mark.parametrize("first_wrong", range(9))
def test_the_search_finds_the_first(first_wrong: int) -> None:
    asked: dict[int, float] = {}

    def error_at(place: int) -> float:
        asked[place] = 1.0 if place >= first_wrong else 0.0
        return asked[place]

    _search(error_at, 8, 0.5)
    wrong = sorted(place for place, error in asked.items() if error)
    assert (wrong[0] if wrong else 8) == first_wrong
    assert first_wrong in (0, 8) or asked[first_wrong - 1] == 0.0
    assert len(asked) <= 4


def test_a_part_ends_at_its_tensor_and_reads_what_it_needs() -> None:
    part = part_of(infer(net()), "h1")
    assert [one.name for one in part.graph.node] == ["layer0", "relu0", "layer1"]
    assert [one.name for one in part.graph.initializer] == ["w0", "w1"]
    assert [one.name for one in part.graph.output] == ["h1"]
    onnx.checker.check_model(part, full_check=True)


def test_errors_go_through_what_was_fused_away() -> None:
    """The artifact has no h1: what r1 is made of is then what h1 was made of."""
    source, artifact = net(), net(w0=WEIGHTS["w0"] * np.float32(1.1))
    for node in artifact.graph.node:
        node.input[:] = ["fused" if name == "h1" else name for name in node.input]
        node.output[:] = ["fused" if name == "h1" else name for name in node.output]
    calls = [{"x": RNG.normal(size=(2, 8)).astype(np.float32)}]
    found = {one.tensor: one for one in compare_tensors(source, artifact, calls)}
    assert "h1" not in found
    assert found["r1"].before == found["r0"].error == pytest.approx(0.1, rel=1e-3)


def test_origins_leave_constants_out_and_notes_may_be_damaged() -> None:
    model = net()
    model.graph.node.insert(0, helper.make_node("Neg", ["w0"], ["minus"], name="constant"))
    assert [one.tensor for one in origins(model)][:2] == ["h0", "r0"]
    node = helper.make_node("Relu", ["a"], ["b"])
    for text in ("nonsense(", "3", "['']"):
        del node.metadata_props[:]
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=text)
        assert module_of(node) is None
    del node.metadata_props[:]
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'relu']")
    assert module_of(node) == "the model itself"


def test_what_is_not_finite_is_infinitely_far_off() -> None:
    one = np.ones(3, np.float32)
    for found in (np.array([1, np.nan, 1]), np.array([1, np.inf, 1]), np.ones(2)):
        tally = Tally()
        tally.add(one, one)
        tally.add(found, one)
        assert tally.error is None
    same = np.array([np.nan, np.inf, 1])
    tally = Tally()
    tally.add(same, same)
    assert tally.error == 0.0


def test_an_engine_that_computes_its_own_way_is_told() -> None:
    fine = TensorError(
        tensor="y", found_as="y", operator="Conv", node="last", module=None, error=1e-4, before=0.0, quantised=False
    )
    found = Bisection(
        bundle="x.orb", artifact="ort", method="tensors", beyond=0.1, calls=1, outputs=0.4, first=None, tensors=(fine,)
    )
    assert "the engine computes its own way" in describe(found)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["net.orb", "net.onnx"], 2, "--bisect"),
        (["--bisect", "none.orb", "net.onnx"], 1, "no bundle"),
        (["--bisect", "net.orb", "none.onnx"], 1, "no model file"),
        (["--bisect", "net.orb", "other.onnx"], 1, "another model"),
        (["--bisect", "net.orb", "net.onnx", "--artifact", "ort-int3"], 1, "no artifact 'ort-int3'"),
        (["--bisect", "net.orb", "net.onnx", "--beyond", "-1"], 2, "no relative error"),
        (["--bisect", "net.orb", "net.onnx", "--beyond", "x"], 2, "--beyond"),
        (["--bisect", "net.orb", "net.onnx", "--calibration", "wrong.npz"], 1, "shape"),
    ],
)
def test_bad_input(here: Path, capsys: Any, arguments: list[str], code: int, message: str) -> None:
    compiled("--backend", "ort")
    onnx.save(net(w0=WEIGHTS["w1"]), here / "other.onnx")
    np.savez(here / "wrong.npz", x=np.ones((3, 5), np.float32))
    assert main(["debug", *arguments]) == code
    assert message in capsys.readouterr().err


def test_trees_and_other_machines(here: Path, table: Any, capsys: Any) -> None:
    import xgboost

    rows, target = table
    xgboost.train({"max_depth": 2}, xgboost.DMatrix(rows, label=target), 2).save_model("trees.ubj")
    assert main(["compile", "trees.ubj", "-o", "trees.orb", "--target", "aarch64"]) == 0
    assert main(["debug", "--bisect", "trees.orb", "trees.ubj"]) == 4
    assert "no operators to bisect" in capsys.readouterr().err
    compiled("--backend", "ort")
    bundle = open_bundle("net.orb")
    entry = bundle.manifest.artifacts[0]
    far = msgspec.structs.replace(entry, needs=msgspec.structs.replace(entry.needs, arch="riscv64"))
    manifest = msgspec.structs.replace(bundle.manifest, artifacts=(far,))
    write_bundle("far.orb", manifest, {path: bundle.read(path) for path in bundle.files()})
    assert main(["debug", "--bisect", "far.orb", "net.onnx"]) == 5
