"""torch itself: eager, and by torch.compile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.networks.peers import Call, Made, NotSupported, Order, Peer


class Torch(Peer):
    """The module in inference mode, on one thread."""

    packages: ClassVar[tuple[str, ...]] = ("torch",)
    engine: ClassVar[tuple[str, ...]] = ("torch",)
    modules: ClassVar[tuple[str, ...]] = ("torch",)
    call: ClassVar[str] = "module(torch.from_numpy(x)) in inference mode, set_num_threads(1)"
    backend: ClassVar[bool] = False

    def export(self, order: Order) -> Made:
        """Save the module."""
        return self.made(save_module(order)[0])

    def open(self, path: Path, order: Order) -> Call:
        """Load the module."""
        import torch

        torch.set_num_threads(1)
        module = self._ready(torch.load(path, weights_only=False), order)

        def call(feed: Any) -> Any:
            with torch.inference_mode():
                result = module(*(torch.from_numpy(array) for array in feed.values()))
            outputs = result if isinstance(result, tuple) else (result,)
            return [one.numpy() for one in outputs]

        return call

    def _ready(self, module: Any, order: Order) -> Any:
        return module


class TorchCompile(Torch):
    """`torch.compile` with its default options, which generates C++ for the CPU."""

    call: ClassVar[str] = "torch.compile(module)(torch.from_numpy(x)) in inference mode, set_num_threads(1)"

    def export(self, order: Order) -> Made:
        """Save the module; code is generated at the first call."""
        if not (os.environ.get("CXX") or shutil.which("g++")):
            raise NotSupported("torch.compile needs a C++ compiler, and there is no g++")
        return super().export(order)

    def _ready(self, module: Any, order: Order) -> Any:
        import torch

        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(order.folder) / "inductor")
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        return torch.compile(module)


def save_module(order: Order) -> tuple[Path, Path]:
    """The whole module, and a tuple of example inputs, as files of torch. Raises NotSupported."""
    if not order.has_module:
        raise NotSupported("the net comes as an ONNX file only")
    import torch
    from benchmarks.networks.nets import net

    folder, found = Path(order.folder), net(order.net)
    path, example = folder / "model.pt", folder / "example.pt"
    torch.save(found.torch_module(), path)
    torch.save(tuple(torch.from_numpy(array) for array in found.calls()[0].values()), example)
    return path, example
