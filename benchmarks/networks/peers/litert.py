"""LiteRT with its XNNPACK delegate, on the torch module as litert-torch converts it.

litert-torch wants other versions of common packages than most, so it may live in an environment of its own:
`OUTRIDER_LITERT_PYTHON` names the Python there. The module goes to it as a `torch.export` program.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.networks.peers import Call, Made, NotSupported, Order, Peer

_VARIABLE = "OUTRIDER_LITERT_PYTHON"
_CONVERT = """
import sys, torch, litert_torch
module = torch.export.load(sys.argv[1]).module()
litert_torch.convert(module, torch.load(sys.argv[2], weights_only=True)).export(sys.argv[3])
"""


class LiteRt(Peer):
    """The interpreter on one thread; its inputs and outputs are copied, as its interface has it."""

    packages: ClassVar[tuple[str, ...]] = ("ai-edge-litert",)
    engine: ClassVar[tuple[str, ...]] = ("ai-edge-litert",)
    modules: ClassVar[tuple[str, ...]] = ("ai_edge_litert.interpreter",)
    call: ClassVar[str] = "interpreter.set_tensor, invoke, get_tensor, num_threads=1"
    backend: ClassVar[bool] = False

    def export(self, order: Order) -> Made:
        """Convert the torch module. There is no maintained way from ONNX."""
        if not order.has_module:
            raise NotSupported("litert-torch converts torch modules, and this net comes as an ONNX file only")
        python = os.environ.get(_VARIABLE) or sys.executable
        if _VARIABLE not in os.environ and find_spec("litert_torch") is None:
            raise NotSupported(f"litert-torch is not installed here, and {_VARIABLE} names no Python that has it")
        import torch
        from benchmarks.networks.peers.torch import save_module

        module, example = save_module(order)
        program, path = module.with_suffix(".pt2"), module.with_suffix(".tflite")
        inputs = torch.load(example, weights_only=True)
        torch.export.save(torch.export.export(torch.load(module, weights_only=False), inputs), program)
        command = [python, "-c", _CONVERT, str(program), str(example), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotSupported(f"litert-torch: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}"[:200])
        return self.made(path)

    def open(self, path: Path, order: Order) -> Call:
        """Allocate all tensors once."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
        inputs = [(detail["index"], detail["dtype"]) for detail in interpreter.get_input_details()]
        outputs = [detail["index"] for detail in interpreter.get_output_details()]

        def call(feed: Any) -> Any:
            for (index, dtype), array in zip(inputs, feed.values(), strict=True):
                interpreter.set_tensor(index, array.astype(dtype, copy=False))  # it makes int32 of int64
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in outputs]

        return call
