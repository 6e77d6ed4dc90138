"""OpenVINO: converted from the ONNX file, in fp32, and quantised by NNCF."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from benchmarks.networks.peers import Call, Made, Order, Peer, Precision


class OpenVino(Peer):
    """One stream on one thread, for latency. fp32 is asked for: on some CPUs the default is bf16."""

    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    engine: ClassVar[tuple[str, ...]] = ("openvino",)
    modules: ClassVar[tuple[str, ...]] = ("openvino",)
    call: ClassVar[str] = "request.infer(feed, share_inputs=True, share_outputs=True), LATENCY, one stream, f32 hint"

    def export(self, order: Order) -> Made:
        """Convert, bind the shapes, save."""
        import openvino as ov

        return self._save(self._converted(order), order, ov)

    def open(self, path: Path, order: Order) -> Call:
        """Compile for the CPU and make one request."""
        import openvino as ov

        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": "1",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        core = ov.Core()
        request = core.compile_model(core.read_model(str(path)), "CPU", config).create_infer_request()

        def call(feed: Any) -> Any:
            return list(request.infer(feed, share_inputs=True, share_outputs=True).values())

        return call

    def _converted(self, order: Order) -> Any:
        import openvino as ov

        model = ov.convert_model(order.onnx)
        model.reshape({name: list(shape) for name, shape in order.shapes.items()})
        return model

    def _save(self, model: Any, order: Order, ov: Any) -> Made:
        path = Path(order.folder) / "model.xml"
        ov.save_model(model, str(path), compress_to_fp16=False)
        return self.made(path, path.with_suffix(".bin"))


class OpenVinoInt8(OpenVino):
    """`nncf.quantize` with the mixed preset, on all calibration samples."""

    packages: ClassVar[tuple[str, ...]] = ("openvino", "nncf")
    call: ClassVar[str] = "nncf.quantize(model, preset=MIXED), request.infer as above"
    precision: ClassVar[Precision] = "int8"

    def export(self, order: Order) -> Made:
        """Convert, quantise, save."""
        import logging

        import nncf
        import numpy as np
        import openvino as ov
        from benchmarks.networks.samples import one_by_one

        nncf.set_log_level(logging.ERROR)
        arrays = np.load(order.calibration)
        samples = list(one_by_one({name: arrays[name] for name in order.shapes}))
        model = nncf.quantize(
            self._converted(order),
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
        )
        return self._save(model, order, ov)
