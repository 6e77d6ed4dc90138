"""The tests of `onnx.backend.test` that need no download, in groups of which each is read by itself.

A group is a module of node tests (`node/abs`, read in a moment where all of them take many seconds) or a folder of
model tests (`simple`). The light models of `real` are inside the package too, with the input that onnx makes for them.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.compiler.passes.graph import inputs_of
from outrider.runtime.errors import NotFoundError

if TYPE_CHECKING:
    import onnx

FOLDERS = ("simple", "pytorch-operator", "pytorch-converted", "real")
_NODES = "onnx.backend.test.case.node"
_NUMBER = re.compile(r"_(\d+)\.pb$")


@dataclass(frozen=True)
class DataSet:
    """One call with what must come out: arrays by position, lists of arrays for sequences, None for nothing."""

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """One test. `operator`: what a node test is about, with its domain unless it is ONNX's own; empty for a model.

    `data`: one or more calls. An output passes within `atol` + `rtol` * |value|.
    """

    name: str
    group: str
    operator: str
    model: onnx.ModelProto
    data: tuple[DataSet, ...]
    rtol: float
    atol: float


def groups() -> tuple[str, ...]:
    """All groups, node tests first."""
    return (*(f"node/{name}" for name in _node_modules(_NODES)), *FOLDERS)


def case_names(group: str) -> tuple[str, ...]:
    """The names of a group's tests, sorted. Raises NotFoundError for a group that there is not."""
    kind, _, module = group.partition("/")
    if kind == "node" and module in _node_modules(_NODES):
        return tuple(sorted(_node_cases(module)))
    if group not in FOLDERS:
        raise NotFoundError(f"there is no group of tests {group!r}")
    return tuple(sorted(path.name for path in (_data() / group).iterdir() if path.is_dir()))


def find_case(group: str, name: str) -> Case:
    """One test with its data. Raises NotFoundError for one that there is not."""
    if name not in case_names(group):
        raise NotFoundError(f"there is no test {name!r} in the group {group!r}")
    if not group.startswith("node/"):
        return _model_case(group, name)
    found = _node_cases(group.partition("/")[2])
    case = found[name]
    data = tuple(DataSet(_arrays(inputs), _arrays(outputs)) for inputs, outputs in case.data_sets)
    return Case(name, group, _operator(found, name), case.model, data, case.rtol, case.atol)


# Node tests --------------------------------------------------------------------------------------------------------


@cache
def _node_modules(package: str) -> tuple[str, ...]:
    """Modules of tests below the package, as `abs` and `ai_onnx_ml.binarizer`."""
    found = importlib.import_module(package)
    names: list[str] = []
    for info in pkgutil.iter_modules(found.__path__):
        if info.ispkg:
            names += [f"{info.name}.{name}" for name in _node_modules(f"{package}.{info.name}")]
        else:
            names.append(info.name)
    return tuple(sorted(name for name in names if not name.rpartition(".")[2].startswith("_")))


@cache
def _node_cases(module: str) -> dict[str, Any]:
    """onnx's own records of the tests of a module, which come into being when it is imported: once in a process."""
    known = importlib.import_module(_NODES)._NodeTestCases
    before = len(known)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        importlib.import_module(f"{_NODES}.{module}")
    return {case.name: case for case in known[before:]}


def _operator(cases: dict[str, Any], name: str) -> str:
    """What the test is about; of one that puts a function in an operator's place, that operator."""
    original = name.partition("_expanded")[0]
    nodes = cases[original if original in cases else name].model.graph.node
    kind = nodes[0] if len(nodes) == 1 else nodes[-1]
    return kind.op_type if kind.domain in ("", "ai.onnx") else f"{kind.domain}.{kind.op_type}"


def _arrays(values: Any) -> tuple[Any, ...]:
    return tuple(_array(value) for value in values)


def _array(value: Any) -> Any:
    import onnx

    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, list | tuple):
        return [_array(one) for one in value]
    return value if value is None else np.asarray(value)


# Model tests -------------------------------------------------------------------------------------------------------


def _data() -> Path:
    from onnx.backend.test import loader

    return Path(loader.DATA_DIR)


def _model_case(group: str, name: str) -> Case:
    import onnx
    from onnx.backend.test.loader import load_model_tests

    found = next(case for case in load_model_tests(kind=group) if case.name == name)
    if found.model_dir is None:
        path = _data() / "light" / Path(found.url or "").name
        model = onnx.load(path)
        data: tuple[DataSet, ...] = (_light(model, path),)
    else:
        folder = Path(found.model_dir)
        model = onnx.load(folder / "model.onnx")
        data = tuple(_stored(model, one) for one in sorted(folder.glob("test_data_set*")))
    return Case(name, group, "", model, data, found.rtol, found.atol)


def _light(model: onnx.ModelProto, path: Path) -> DataSet:
    """The input is a ramp from 0 to 1, as in onnx's runner, and the output is beside the model."""
    inputs = []
    for value in inputs_of(model.graph):
        shape = tuple(size.dim_value or 1 for size in value.type.tensor_type.shape.dim)
        count = int(np.prod(shape))
        inputs.append((np.arange(count).reshape(shape) / count).astype(np.float32))
    count = len(model.graph.output)
    outputs = [_read(path.with_name(f"{path.stem}_output_{i}.pb"), model.graph.output[i].type) for i in range(count)]
    return DataSet(tuple(inputs), tuple(outputs))


def _stored(model: onnx.ModelProto, folder: Path) -> DataSet:
    """The numbered files of a folder."""
    given = inputs_of(model.graph)
    given = given if len(given) == len(list(folder.glob("input_*.pb"))) else list(model.graph.input)
    sides = (("input", given), ("output", model.graph.output))
    inputs, outputs = (
        tuple(
            _read(path, value.type)
            for path, value in zip(sorted(folder.glob(f"{side}_*.pb"), key=_number), values, strict=False)
        )
        for side, values in sides
    )
    return DataSet(inputs, outputs)


def _number(path: Path) -> int:
    found = _NUMBER.search(path.name)
    return int(found[1]) if found else 0


def _read(path: Path, kind: onnx.TypeProto) -> Any:
    import onnx

    data = path.read_bytes()
    if kind.HasField("sequence_type"):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data))
