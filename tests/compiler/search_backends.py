"""Backends that do what foreign compilers do at their worst; each is one class, and one line in the table."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import onnx

from outrider.compiler.backends import Built, Candidate, Order, Workbench, artifact_entry
from outrider.compiler.model import OnnxGraph
from outrider.runtime.errors import BadInputError, ToolchainError, UnsupportedError
from outrider.runtime.target import Requirements, Target


def does(deed: str, precision: str = "fp32", **options: str) -> Candidate:
    """A candidate that does this as it is built."""
    return Candidate("wild", precision, {"method": deed, **options})


class Wild:
    """Passes ONNX files through, scales weights or shifts outputs, or does something worse, as a candidate says."""

    isolated = True
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8", "mixed")
    tools: tuple[str, ...] = ()
    offers: ClassVar[Sequence[Candidate]] = ()

    def refuses(self, order: Order) -> str | None:
        """Nothing but forests."""
        return None if isinstance(order.model.payload, OnnxGraph) else "no graph"

    def explore(self, order: Order, bench: Workbench) -> None:
        """All that may be tried."""
        bench.build(self.rule(order))

    def rule(self, order: Order) -> Sequence[Candidate]:
        """The same."""
        return [one for one in self.offers if order.allows(one.precision)]

    def recall(self, order: Order, precision: str, options: Mapping[str, str]) -> Candidate | None:
        """Any."""
        return Candidate("wild", precision, dict(options))

    def faithful(self, order: Order) -> Candidate | None:
        """None."""
        return None

    def build(self, order: Order, candidate: Candidate) -> Built:
        """Do what the candidate says."""
        assert isinstance(order.model.payload, OnnxGraph)
        deed = candidate.options["method"]
        if deed == "abort":
            os.abort()
        if deed == "kill":
            os.kill(os.getpid(), 9)
        if deed == "hang":
            time.sleep(120)
        if deed == "eat":
            np.ones(8 << 30, np.uint8)
        if deed == "exit":
            raise SystemExit(0)
        if deed == "interrupt":
            raise KeyboardInterrupt
        if deed == "print":
            os.write(1, b"compiling\n" * 5000)
        errors = {
            "raise": RuntimeError("internal compiler error"),
            "unsupported": UnsupportedError("there is no operator Foo"),
            "toolchain": ToolchainError("the linker failed"),
            "bad": BadInputError("the model is strange"),
        }
        if deed in errors:
            raise errors[deed]
        data = order.model.payload.data if deed != "garbage" else b"no ONNX file"
        if "shift" in candidate.options:
            data = _shifted(data, float(candidate.options["shift"]))
        if "scale" in candidate.options:
            data = _scaled(data, float(candidate.options["scale"]))
        entry = artifact_entry(
            order.model,
            candidate,
            data,
            file="model.onnx",
            kind="onnx",
            package="onnxruntime",
            triple=None,
            needs=Requirements(memory_bytes=len(data)),
        )
        return Built(candidate, data, entry)

    def twin(self, order: Order, candidate: Candidate, host: Target) -> Built | None:
        """The same file."""
        return self.build(order, candidate)


class Tame(Wild):
    """The same in the compiler's own process."""

    isolated = False


def _shifted(data: bytes, by: float) -> bytes:
    model = onnx.load_model_from_string(data)
    model.graph.node[0].output[0] = "h"
    model.graph.node.append(onnx.helper.make_node("Add", ["h", "by"], ["y"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(by), "by"))
    shifted: bytes = model.SerializeToString()
    return shifted


def _scaled(data: bytes, factor: float) -> bytes:
    model = onnx.load_model_from_string(data)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(factor), "w"))
    scaled: bytes = model.SerializeToString()
    return scaled
