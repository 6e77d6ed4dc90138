"""What earlier compiles left is taken over where nothing changed, and never otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from outrider.compiler import cache, compile_model, measure
from outrider.compiler.report import Report
from outrider.compiler.workshop import Workshop

ROWS = np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)


def net(scale: float = 1.0) -> onnx.ModelProto:
    """A layer of four inputs and three outputs."""
    weights = numpy_helper.from_array((scale * np.eye(4, 3)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Softmax", ["m"], ["probabilities"])]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    made = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "net", [given], [made], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


class Compile:
    """Compiles into a folder, and tells whether anything was built."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, list[str]()

    def __call__(self, model: Any = None, **options: Any) -> Report:
        self.told.clear()
        settings = {"backends": ["ort"], "name": "net", "calibration": ROWS, "out": self.folder / "net.orb"} | options
        return compile_model(net() if model is None else model, progress=self.told.append, **settings)

    @property
    def searched(self) -> bool:
        return any(text.startswith("verifying") for text in self.told)


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compile:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(cache.SWITCH)
    monkeypatch.setattr(measure, "_ROUNDS", 3)
    monkeypatch.setattr(measure, "_CALLS", 20)
    return Compile(tmp_path)


def files(compiled: Compile) -> list[Path]:
    return sorted((compiled.folder / "cache" / "compile").iterdir())


def test_a_second_compile_takes_over_what_the_first_found(compiled):
    first = compiled()
    assert compiled.searched
    second = compiled()
    assert not compiled.searched
    assert (second.sha256, second.manifest) == (first.sha256, first.manifest)


@pytest.mark.parametrize(
    "change",
    [
        {"model": net(2.0)},
        {"calibration": ROWS[:16]},
        {"goals": ["size<=1MB"]},
        {"threads": 2},
        {"precisions": ["fp32"]},
    ],
)
def test_any_change_is_searched_anew(compiled, change):
    compiled()
    compiled(**change)
    assert compiled.searched


def test_artifacts_outlive_a_change_of_goals(compiled, monkeypatch):
    compiled()

    def unexpected(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be built")

    monkeypatch.setattr(Workshop, "call", unexpected)
    assert compiled(goals=["size<=1MB"]).manifest.artifacts


def test_a_damaged_file_counts_as_none(compiled):
    first = compiled()
    for path in files(compiled):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert compiled().manifest.artifacts == first.manifest.artifacts
    assert compiled.searched


def test_a_cache_that_cannot_be_written_is_as_good_as_none(compiled):
    (compiled.folder / "cache").write_text("a file in the place of the folder")
    assert compiled().manifest.artifacts


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_without_a_cache(compiled, monkeypatch, how):
    compiled()
    if how == "environment":
        monkeypatch.setenv(cache.SWITCH, "off")
    compiled(cache=how == "environment")
    assert compiled.searched


def test_what_the_callers_own_code_judged_is_not_kept(compiled):
    for _ in range(2):
        compiled(goals=["metric>=0"], evaluate=lambda predict, inputs, labels: 1.0)
        assert compiled.searched


def test_tools_are_known_by_their_distributions():
    assert set(cache.tool_versions(["onnx", "apache-tvm", "no-such-tool"])) == {"onnx", "apache-tvm"}


def test_what_was_not_used_for_longest_is_deleted(compiled, monkeypatch):
    compiled()
    kept = max(path.stat().st_size for path in files(compiled))
    monkeypatch.setattr(cache, "MOST_BYTES", kept)
    compiled(net(2.0))
    assert sum(path.stat().st_size for path in files(compiled)) <= kept
