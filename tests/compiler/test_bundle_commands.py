"""`outrider explain`, `bench` and `rebuild`: what they print, and their exit codes."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from outrider.compiler.bench import BenchResult
from outrider.compiler.pareto import Chart, Point, read_points
from outrider.compiler.plot import page, svg
from outrider.runtime.bundle import open_bundle, write_bundle
from outrider.runtime.cli import main
from outrider.runtime.errors import BadInputError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repetitions: these tests look at what is measured, not at how well."""
    from outrider.compiler import measure

    monkeypatch.setattr(measure, "_MOST_ROUNDS", 3)
    monkeypatch.setattr(measure, "_ROUNDS", 3)
    monkeypatch.setattr(measure, "_LOOP_NS", 20_000)
    monkeypatch.setattr(measure, "_CALLS", 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in two layers, rows for it, and bundles: for this machine, in several precisions, and for another."""
    made = tmp_path_factory.mktemp("commands")
    rng = np.random.default_rng(3)
    weights = {"w1": (8, 16), "w2": (16, 4)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(rng.normal(size=size).astype(np.float32), key) for key, size in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, made / "net.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), made / "other.onnx")
    np.savez(made / "rows.npz", x=rng.normal(size=(50, 8)).astype(np.float32))
    compiled = ["compile", str(made / "net.onnx"), "--calibration", str(made / "rows.npz"), "--backend", "ort"]
    assert main([*compiled, "-o", str(made / "net.orb"), "--goal", "l2<=0.9", "--budget", "30"]) == 0
    assert main([*compiled, "-o", str(made / "arm.orb"), "--target", "aarch64", "--goal", "l2<=0.9"]) == 0
    return made


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of those files as the current folder."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_explain_says_why(here: Path, capsys: Any) -> None:
    assert main(["explain", "net.orb"]) == 0
    text = capsys.readouterr().out
    chosen = next(record for record in open_bundle("net.orb").manifest.candidates if record.rank == 1)
    assert f"#1 {chosen.id}: the fastest here of those that meet the goals" in text
    assert "goal l2<=0.9: met (asked: <= 0.9)" in text
    assert "relative L2" in text
    assert "made with onnx" in text


def test_a_plot_is_one_page_that_fetches_nothing(here: Path, capsys: Any) -> None:
    assert main(["explain", "net.orb", "--plot", "net.html"]) == 0
    assert "plot: net.html" in capsys.readouterr().out
    text = (here / "net.html").read_text()
    tried = [one.id for one in open_bundle("net.orb").manifest.candidates if one.parity is not None]
    assert len(tried) > 3
    assert all(f"<td>{name}</td>" in text for name in tried)
    assert not re.search(r"src=|href=|url\(|@import", text)
    drawn = ElementTree.fromstring(re.search(r"<svg.*</svg>", text, re.DOTALL)[0])  # type: ignore[index]
    circles = [one for one in drawn.iter() if one.tag.endswith("circle")]
    assert len(circles) == len(tried)
    width, height = float(drawn.attrib["width"]), float(drawn.attrib["height"])
    assert all(0 < float(one.attrib["cx"]) < width and 0 < float(one.attrib["cy"]) < height for one in circles)
    assert main(["explain", "arm.orb", "--plot", "arm.html"]) == 0
    assert "nothing was measured" in (here / "arm.html").read_text()
    assert main(["explain", "net.orb", "--plot", "size.html", "--against", "size"]) == 0
    assert "size, bytes" in (here / "size.html").read_text()


def test_a_plot_as_png(here: Path, require_package: Callable[[str], None]) -> None:
    require_package("matplotlib")
    assert main(["explain", "net.orb", "--plot", "net.png"]) == 0
    assert (here / "net.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_plot_as_png_names_what_is_missing(here: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    assert main(["explain", "net.orb", "--plot", "net.png"]) == 2
    assert "outrider[plot]" in capsys.readouterr().err
    assert not (here / "net.png").exists()


def test_names_are_escaped_and_equal_points_have_room() -> None:
    same = tuple(Point(name, 0.0, 5.0, None, True) for name in ("<a>", "b&c"))
    chart = Chart("<script>", "x", "y", same)
    assert "<script>" not in page(chart)
    assert "b&amp;c" in svg(chart)
    ElementTree.fromstring(svg(chart))
    wide = Chart("t", "x", "y", (Point("a", 1e-6, 1.0, 1, True), Point("b", 1e3, 1.1, None, False)))
    ElementTree.fromstring(svg(wide))


def test_the_front_is_what_nothing_beats_in_both(here: Path) -> None:
    points = read_points(open_bundle("net.orb").manifest).points
    for one in points:
        beaten = any(o.x <= one.x and o.y <= one.y and (o.x, o.y) != (one.x, one.y) for o in points)
        assert one.on_front == (not beaten)
    manifest = open_bundle("net.orb").manifest
    bare = tuple(msgspec.structs.replace(one, parity=None) for one in manifest.candidates)
    with pytest.raises(BadInputError, match="nothing to plot"):
        read_points(msgspec.structs.replace(manifest, candidates=bare))


def test_bench_times_what_runs_here(here: Path, capsys: Any) -> None:
    assert main(["bench", "arm.orb", "--batch", "1", "--batch", "3", "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=BenchResult)
    assert {one.artifact for one in found.artifacts} == {
        one.candidate for one in open_bundle("arm.orb").manifest.artifacts
    }
    for one in found.artifacts:
        assert [times.batch for times in one.measured] == [1, 3]
        assert all(0 < times.ns_per_row_min <= times.ns_per_row_median for times in one.measured)
        assert 0 < one.p50_ms <= one.p99_ms
    assert main(["bench", "net.orb"]) == 0
    text = capsys.readouterr().out
    assert "1024 rows, least" in text
    assert "1 thread;" in text


def test_rebuild_gives_the_same_bytes_or_names_what_differs(here: Path, capsys: Any) -> None:
    rows = ["--calibration", "rows.npz"]
    assert main(["rebuild", "net.orb", "net.onnx", "--check", *rows]) == 0
    assert "byte for byte" in capsys.readouterr().out
    assert main(["rebuild", "net.orb", "net.onnx", "-o", "again.orb", *rows]) == 0
    assert (here / "again.orb").read_bytes() == (here / "net.orb").read_bytes()
    assert main(["rebuild", "net.orb", "net.onnx", "--check"]) == 1
    shown = capsys.readouterr()
    assert "golden/inputs/x.npy" in shown.err
    assert "evidence: calibration -> random" in shown.out


def test_rebuild_names_tools_of_other_versions(here: Path, capsys: Any) -> None:
    bundle = open_bundle("net.orb")
    manifest = msgspec.structs.replace(bundle.manifest, tools={**bundle.manifest.tools, "onnx": "0.1"})
    write_bundle("old.orb", manifest, {path: bundle.read(path) for path in bundle.files()})
    assert main(["rebuild", "old.orb", "net.onnx", "--check", "--calibration", "rows.npz"]) == 1
    shown = capsys.readouterr()
    assert "manifest.json (tool onnx)" in shown.err
    assert "onnx: 0.1 -> " in shown.out


def test_rebuild_of_what_misses_its_goals(here: Path, capsys: Any) -> None:
    compiled = ["compile", "net.onnx", "--calibration", "rows.npz", "--backend", "ort", "--goal", "p99<=1ns"]
    assert main([*compiled, "-o", "net.orb"]) == 3
    assert main(["rebuild", "net.unmet.orb", "net.onnx", "--check", "--calibration", "rows.npz"]) == 0
    assert "byte for byte" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["explain", "none.orb"], 1, "no bundle"),
        (["explain", "net.orb", "--plot", "net.svg"], 2, "neither .png nor .html"),
        (["explain", "net.orb", "--plot", "none/net.html"], 70, "none/net.html"),
        (["explain", "net.orb", "--against", "size"], 2, "--plot"),
        (["explain", "arm.orb", "--plot", "arm.html", "--against", "size"], 1, "no time to plot"),
        (["bench", "none.orb"], 1, "no bundle"),
        (["bench", "net.orb", "--batch", "0"], 2, "no whole number"),
        (["bench", "net.orb", "--threads", "x"], 2, "no whole number"),
        (["rebuild", "net.orb", "net.onnx"], 2, "nothing to do"),
        (["rebuild", "net.orb", "none.onnx", "--check"], 1, "no model file"),
        (["rebuild", "net.orb", "other.onnx", "--check"], 1, "another model"),
        (["rebuild", "rows.npz", "net.onnx", "--check"], 1, ""),
    ],
)
def test_bad_input(here: Path, capsys: Any, arguments: list[str], code: int, message: str) -> None:
    assert main(arguments) == code
    assert message in capsys.readouterr().err


def test_bench_of_a_model_of_whole_tensors_takes_no_batches(here: Path, capsys: Any) -> None:
    assert main(["compile", "net.onnx", "--shape", "x=2,8", "--backend", "ort", "-o", "two.orb"]) == 0
    assert main(["bench", "two.orb", "--batch", "4"]) == 2
    assert "whole tensors" in capsys.readouterr().err
    assert main(["bench", "two.orb"]) == 0
    assert "2 rows, least" in capsys.readouterr().out


def test_bench_of_what_runs_elsewhere(here: Path, capsys: Any) -> None:
    bundle = open_bundle("net.orb")
    needs = [msgspec.structs.replace(one.needs, arch="riscv64") for one in bundle.manifest.artifacts]
    artifacts = tuple(
        msgspec.structs.replace(one, needs=need) for one, need in zip(bundle.manifest.artifacts, needs, strict=True)
    )
    manifest = msgspec.structs.replace(bundle.manifest, artifacts=artifacts)
    write_bundle("far.orb", manifest, {path: bundle.read(path) for path in bundle.files()})
    assert main(["bench", "far.orb"]) == 5
    assert "arch: needs riscv64" in capsys.readouterr().err
