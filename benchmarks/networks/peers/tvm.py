"""TVM as it compiles without tuning: its default schedules, on the ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from benchmarks.networks.peers import Call, Made, Order, Peer


class TvmDefault(Peer):
    """Relax's default pipeline for this CPU, called through its virtual machine."""

    packages: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi")
    engine: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi")
    modules: ClassVar[tuple[str, ...]] = ("tvm", "tvm.relax")
    call: ClassVar[str] = 'VirtualMachine(...)["main"](tensor), not tuned'

    def export(self, order: Order) -> Made:
        """Import, fold constants, compile for this CPU, link."""
        import onnx
        import tvm
        from tvm import relax
        from tvm.relax.frontend.onnx import from_onnx

        shapes = {name: list(shape) for name, shape in order.shapes.items()}
        module = from_onnx(onnx.load(order.onnx), shape_dict=shapes, keep_params_in_input=False)
        module = relax.transform.FoldConstant()(module)
        cpu = tvm.get_global_func("target.llvm_get_system_cpu")()
        target = tvm.target.Target({"kind": "llvm", "mcpu": str(cpu), "num-cores": 1})
        path = Path(order.folder) / "model.so"
        tvm.compile(module, target).export_library(str(path))
        return self.made(path)

    def open(self, path: Path, order: Order) -> Call:
        """Load the library into a virtual machine."""
        import tvm
        from tvm import relax

        main = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())["main"]

        def call(feed: Any) -> Any:
            result = main(*(tvm.runtime.tensor(array) for array in feed.values()))
            outputs = [result] if hasattr(result, "numpy") else list(result)
            return [one.numpy() for one in outputs]

        return call
