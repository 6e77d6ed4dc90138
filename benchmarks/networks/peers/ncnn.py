"""ncnn, on what pnnx makes: of the torch module where there is one, else of the ONNX file."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.networks.peers import Call, Made, NotSupported, Order, Peer

_MADE_S = 300


class Ncnn(Peer):
    """One thread; all other options as they are by default. ncnn has no batch axis, so it is taken off and put on."""

    packages: ClassVar[tuple[str, ...]] = ("ncnn", "pnnx")
    engine: ClassVar[tuple[str, ...]] = ("ncnn",)
    modules: ClassVar[tuple[str, ...]] = ("ncnn",)
    call: ClassVar[str] = "extractor.input(name, Mat(x)), extract(name), opt.num_threads=1"

    def export(self, order: Order) -> Made:
        """Run pnnx, which also fixes the shapes."""
        import pnnx

        folder = Path(order.folder)
        if order.has_module:
            import torch
            from benchmarks.networks.peers.torch import save_module

            module, example = save_module(order)
            loaded = torch.load(module, weights_only=False)
            inputs = torch.load(example, weights_only=True)
            source = folder / "model.torchscript"
            with torch.no_grad():
                torch.jit.trace(loaded, inputs).save(str(source))
        else:
            source = folder / "model.onnx"
            source.write_bytes(Path(order.onnx).read_bytes())
        shapes = ",".join(f"[{','.join(map(str, shape))}]{_kind(order, name)}" for name, shape in order.shapes.items())
        command = [str(pnnx.EXEC_PATH), source.name, f"inputshape={shapes}", "fp16=0"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_MADE_S, check=False)
        path = folder / "model.ncnn.param"
        if done.returncode != 0 or not path.is_file():
            raise NotSupported(f"pnnx ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
        if unknown := _unknown(path):
            raise NotSupported(f"ncnn lacks {', '.join(sorted(unknown))}")
        return self.made(path, path.with_suffix(".bin"))

    def open(self, path: Path, order: Order) -> Call:
        """Load the two files."""
        import ncnn
        import numpy as np

        network = ncnn.Net()
        network.opt.num_threads = 1
        if network.load_param(str(path)) != 0 or network.load_model(str(path.with_suffix(".bin"))) != 0:
            raise NotSupported("ncnn cannot load what pnnx made")
        inputs, outputs = network.input_names(), network.output_names()

        def call(feed: Any) -> Any:
            extractor = network.create_extractor()
            for name, array in zip(inputs, feed.values(), strict=True):
                row = array[0] if array.dtype == np.float32 else array[0].astype(np.int32)
                extractor.input(name, ncnn.Mat(row))
            found = []
            for name in outputs:
                code, mat = extractor.extract(name)
                if code != 0:
                    raise RuntimeError(f"ncnn gives {code} for {name}")
                found.append(np.array(mat)[None])
            return found

        return call


def _kind(order: Order, name: str) -> str:
    import numpy as np

    return "i64" if np.load(order.calibration)[name].dtype == np.int64 else "f32"


def _unknown(path: Path) -> set[str]:
    """The layers that pnnx left as its own, as ncnn has none of their kind."""
    kinds = (line.split()[0] for line in path.read_text().splitlines()[2:] if line.strip())
    return {kind for kind in kinds if "." in kind or "::" in kind}
