"""torch modules and exported programs: what they become, that they agree with torch, and what is refused, and why."""

from __future__ import annotations

import copy
import hashlib
import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from outrider.compiler import compile_model
from outrider.compiler.frontends import ReadOptions, read_model
from outrider.compiler.frontends.sniff import sniff_file
from outrider.compiler.model import Model, OnnxGraph
from outrider.runtime import load
from outrider.runtime.errors import BadDataError, BadInputError, BadModelError, UnsupportedError

RNG = np.random.default_rng(11)
WITHIN = 1e-5  # of the largest value


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from outrider.compiler import measure

    monkeypatch.setattr(measure, "_ROUNDS", 2)
    monkeypatch.setattr(measure, "_LOOP_NS", 20_000)
    monkeypatch.setattr(measure, "_CALLS", 10)


@pytest.fixture(scope="session")
def nets(torch_nets: ModuleType) -> ModuleType:
    return torch_nets


def images(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def read(module: Any, calibration: Any = None, **options: Any) -> Model:
    examples = {} if calibration is None else calibration if isinstance(calibration, dict) else {None: calibration}
    return read_model(module, ReadOptions(examples=examples, **options))


def shapes_of(model: Model) -> dict[str, Any]:
    return {spec.name: spec.shape for spec in (*model.signature.inputs, *model.signature.outputs)}


def run_graph(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    assert isinstance(model.payload, OnnxGraph)
    session = onnxruntime.InferenceSession(model.payload.data, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def agrees(model: Model, inputs: dict[str, np.ndarray]) -> None:
    """The graph gives what torch gives."""
    found, wanted = run_graph(model, inputs), model.reference(inputs)
    assert list(found) == list(wanted) == list(model.computed)
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        assert np.abs(found[name].astype(np.float64) - array).max() <= WITHIN * max(1, np.abs(array).max()), name


# What becomes of modules --------------------------------------------------------------------------------------------


def test_a_cnn_from_end_to_end(nets, tmp_path, capfd, caplog):
    torch = nets.torch
    module, x = nets.cnn(), images(9, 3, 8, 8)
    modes = [one.training for one in module.modules()]
    module.norm.eval()
    with caplog.at_level(logging.WARNING):
        report = compile_model(
            module, out=tmp_path / "m.orb", name="cnn", calibration=x, labels=list("abcde"), backends=["ort"]
        )
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert [one.training for one in module.modules()] == [
        mode and one is not module.norm for one, mode in zip(module.modules(), modes, strict=True)
    ]
    assert report.manifest.source.framework == "torch"
    assert report.manifest.source.framework_version == torch.__version__.partition("+")[0]
    assert report.manifest.signature.class_labels == tuple("abcde")
    with torch.no_grad():
        wanted = copy.deepcopy(module).eval()(torch.from_numpy(x)).numpy()
    with load(tmp_path / "m.orb") as session:
        assert np.abs(session.predict(x) - wanted).max() <= WITHIN * np.abs(wanted).max()
        assert session.predict(x[:1]).shape == (1, 5)
        assert session.run({"x": x})["label"].tolist() == [list("abcde")[place] for place in wanted.argmax(1)]


def test_sizes_are_free_where_that_is_asked_for(nets):
    model = read(nets.cnn(), images(5, 3, 8, 10), shapes={"x": (None, 3, None, None)})
    assert shapes_of(model) == {"x": (None, 3, None, None), "output": (None, 5)}
    assert model.signature.batched
    agrees(model, {"x": images(2, 3, 12, 7)})
    bound = read(nets.cnn(), None, shapes={"x": (1, 3, 6, 6)})
    assert shapes_of(bound) == {"x": (1, 3, 6, 6), "output": (1, 5)}


def test_tokens_masks_and_named_outputs(nets):
    tokens = RNG.integers(0, 20, (6, 5))
    mask = np.arange(5) >= RNG.integers(2, 6, (6, 1))
    model = read(nets.Tagger(), {"tokens": tokens, "mask": mask, "label": np.zeros(6)})
    assert {spec.name: spec.dtype for spec in model.signature.inputs} == {"tokens": "int64", "mask": "bool"}
    assert shapes_of(model) == {
        "tokens": (None, 5),
        "mask": (None, 5),
        "tags": (None, 5, 8),
        "pooled_0": (None, 8),
        "tokens_2": (None, 5),
    }
    assert (model.signature.predict, model.signature.batched) == ("tags", True)
    agrees(model, {"tokens": tokens[:3], "mask": mask[:3]})
    only = read(nets.Tagger(), tokens)
    assert [spec.name for spec in only.signature.inputs] == ["tokens"]


def test_axis_0_of_recurrent_nets_counts_no_rows(nets):
    given = {"x": images(5, 2, 3), "h": images(1, 2, 4), "c": images(1, 2, 4)}
    model = read(nets.Steps(), given)
    assert not model.signature.batched
    assert shapes_of(model) == {
        "x": (5, 2, 3), "h": (1, 2, 4), "c": (1, 2, 4),
        "output_0": (5, 2, 4), "output_1_0": (1, 2, 4), "output_1_1": (1, 2, 4),
    }  # fmt: skip
    agrees(model, given)


@pytest.mark.parametrize(("rows", "found"), [(0, 1), (4, 4)])
def test_rows_that_a_module_fixes_are_fixed(nets, rows, found):
    model = read(nets.Fixed(rows), images(4, 6))
    assert shapes_of(model) == {"x": (found, 6), "output": (found, 6)}
    assert shapes_of(read(nets.Fixed(rows), images(8, 6), shapes={"x": (4, 6)}))["x"] == (4, 6)


def test_a_fixed_number_of_rows_that_calibration_has_more_of(nets):
    assert shapes_of(read(nets.Fixed(2), images(5, 6))) == {"x": (2, 6), "output": (2, 6)}


def test_outputs_that_nothing_computes(nets):
    x, y = images(4, 3), RNG.integers(0, 9, (4, 3)).astype(np.int32)
    model = read(nets.Pieces(), {"x": x, "y": y})
    assert [spec.name for spec in model.signature.outputs] == ["add", "x_2", "again", "kept"]
    agrees(model, {"x": x, "y": y})


def test_control_flow_that_torch_exports(nets):
    model = read(nets.Branch(), images(1, 3), shapes={"x": (1, 3)})
    assert isinstance(model.payload, OnnxGraph)
    assert "If" in {node.op_type for node in onnx.load_model_from_string(model.payload.data).graph.node}
    for sign in (-1, 1):
        agrees(model, {"x": np.full((1, 3), sign, np.float32)})


def test_types_of_numbers(nets):
    nn = nets.nn
    model = read(nets.Spectrum(), images(4, 8))
    assert shapes_of(model) == {"x": (None, 8), "output": (None, 5, 2)}
    agrees(model, {"x": images(4, 8)})
    double = read(nn.Linear(3, 2).double(), images(4, 3))
    assert {spec.dtype for spec in (*double.signature.inputs, *double.signature.outputs)} == {"float64"}
    single = read(nn.Linear(3, 2), images(4, 3).astype(np.float64))
    assert single.signature.inputs[0].dtype == "float32"


# The same bytes -----------------------------------------------------------------------------------------------------

AGAIN = """
import sys, hashlib, torch
from outrider.compiler.frontends import ReadOptions, read_model
model = read_model(torch.export.load(sys.argv[1]))
print(model.sha256, hashlib.sha256(model.payload.data).hexdigest())
"""


def test_a_program_gives_the_same_bytes_from_its_file_and_in_another_process(nets, tmp_path):
    torch = nets.torch
    module, x = nets.cnn().eval(), torch.randn(2, 3, 6, 6)
    program = torch.export.export(module, (x,), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    plain = tmp_path / "net"
    plain.write_bytes(path.read_bytes())
    assert sniff_file(plain) == sniff_file(path) == "torch"
    models = [read(program), read(path, trust_pickle=True)]
    for model in models:
        assert isinstance(model.payload, OnnxGraph)
        assert shapes_of(model) == {"x": (None, 3, 6, 6), "output": (None, 5)}
        assert (model.sha256, model.payload.data) == (models[0].sha256, models[0].payload.data)
        with torch.no_grad():
            assert np.array_equal(model.reference({"x": x.numpy()})["output"], module(x).numpy())
    agrees(models[0], {"x": images(3, 3, 6, 6)})
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AGAIN, str(path)],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert ran.stdout.split() == [models[0].sha256, hashlib.sha256(models[0].payload.data).hexdigest()]


def test_a_module_gives_the_same_bytes_twice_and_nothing_of_this_machine(nets):
    torch = nets.torch
    one, other = read(nets.cnn(), images(4, 3, 8, 8)), read(nets.cnn(), images(4, 3, 8, 8))
    assert isinstance(one.payload, OnnxGraph)
    assert isinstance(other.payload, OnnxGraph)
    assert (one.sha256, one.payload.data) == (other.sha256, other.payload.data)
    assert str(Path(torch.__file__).parent).encode() not in one.payload.data
    assert b"forward" not in one.payload.data
    graph = onnx.load_model_from_string(one.payload.data).graph
    assert {entry.key for node in graph.node for entry in node.metadata_props} == {"pkg.torch.onnx.name_scopes"}
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    changed = nets.cnn()
    with torch.no_grad():
        changed.head.bias[0] += 1
    assert read(changed, images(4, 3, 8, 8)).sha256 != one.sha256


# What is refused ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_named_with_its_module(nets):
    nn = nets.nn
    inside = nn.Sequential(nn.Linear(3, 3), nets.OneWay())
    with pytest.raises(UnsupportedError, match=r"line \d+ of torch_nets\.py in the module '1' \(OneWay\), `if x\.sum"):
        read(inside, images(4, 3))
    with pytest.raises(UnsupportedError, match=r"operator aten\._linalg_eigh of the module '0' \(Eigen\)"):
        read(nn.Sequential(nets.Eigen()), images(4, 3, 3))


def test_modules_that_are_refused(nets):
    torch, nn = nets.torch, nets.nn
    counter = nets.Counter()
    with pytest.raises(UnsupportedError, match="changes its buffer 'seen'"):
        read(counter, images(4, 3))
    assert counter.seen.item() == 0
    with pytest.raises(UnsupportedError, match=r"training mode: it has aten\.dropout"):
        read(torch.export.export(nn.Dropout(0.5).train(), (torch.zeros(2, 3),)))
    with pytest.raises(UnsupportedError, match="changes its buffer 'seen'"):
        read(torch.export.export(counter, (torch.zeros(2, 3),)))
    with pytest.raises(UnsupportedError, match="'output_1' as a number"):
        read(nets.Size(), images(4, 3))
    with pytest.raises(BadModelError, match="have no size yet"):
        read(nn.LazyLinear(3), images(4, 3))
    with pytest.raises(UnsupportedError, match="axis 1 of 'input' cannot be left free"):
        read(nn.Linear(3, 2), images(4, 3), shapes={"input": (None, None)})
    with pytest.raises(UnsupportedError, match="Tensor are not supported"):
        read(torch.zeros(3))
    broken = nn.Linear(3, 2)
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    with pytest.raises(BadModelError, match="hold NaN"):
        read(broken, images(4, 3))


def test_calibration_that_does_not_fit(nets):
    nn = nets.nn
    linear = nn.Linear(3, 2)
    with pytest.raises(BadModelError, match=r"Linear\.forward takes as 'input' \(give calibration"):
        read(linear)
    with pytest.raises(BadDataError, match=r"fails on the calibration: RuntimeError.*\(it was given input float32\[4"):
        read(linear, images(4, 5))
    with pytest.raises(BadDataError, match=r"no argument 'z' \(it takes input"):
        read(linear, {"input": images(4, 3), "z": images(4, 3)})
    with pytest.raises(BadDataError, match="takes several inputs: x, h, c"):
        read(nets.Steps(), images(4, 3))
    with pytest.raises(BadDataError, match="lacks 'c'"):
        read(nets.Steps(), {"x": images(5, 2, 3), "h": images(1, 2, 4)})
    with pytest.raises(BadDataError, match="no rows"):
        read(linear, images(0, 3))
    with pytest.raises(BadDataError, match=r"shape \(4, 3\), its sizes are given as \(n, 5\)"):
        read(linear, images(4, 3), shapes={"input": (None, 5)})


def test_files_that_are_no_programs(nets, tmp_path):
    torch, nn = nets.torch, nets.nn
    weights, script, broken, program = (tmp_path / name for name in ("w.pth", "s.pt", "b.pt2", "p.pt2"))
    torch.save(nn.Linear(3, 2).state_dict(), weights)
    with pytest.raises(UnsupportedError, match=r"holds weights.*torch\.export\.save"):
        read(weights, trust_pickle=True)
    broken.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(BadModelError, match="not a readable torch file"):
        read(broken)
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(2, 3),)), program)
    with pytest.raises(BadInputError, match="--trust-pickle"):
        read(program)
    program.write_bytes(program.read_bytes().replace(b'"graph_module"', b'"graph_nodule"'))
    with pytest.raises(BadModelError, match=r"not a readable torch\.export program"):
        read(program, trust_pickle=True)
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.trace(nn.Linear(3, 2), torch.zeros(2, 3)).save(script)
    with pytest.raises(UnsupportedError, match="TorchScript archive"):
        read(script)


def test_the_operator_that_onnx_runtime_refuses_is_named_with_its_module():
    node = onnx.helper.make_node("Mystery", ["x"], ["y"], name="n1", domain="com.example")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'layers.1', 'mystery']")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.example", 1)]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    with pytest.raises(UnsupportedError, match=r"com\.example\.Mystery \(node 'n1', of the module 'layers\.1'\)"):
        read_model(model)
    node.domain = ""
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=opsets[:1], ir_version=9
    )
    with pytest.raises(UnsupportedError, match="operator Mystery"):
        read_model(model)
