"""ONNX Runtime: the file as it is, and quantised by its own static quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from benchmarks.networks.peers import Call, Made, Order, Peer, Precision

_QDQ_OPSET = 18  # scales of each channel need 13 or more


class OnnxRuntime(Peer):
    """One session on one thread, with all graph optimisations, as is the default."""

    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    engine: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    modules: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    call: ClassVar[str] = "session.run(None, feed), intra_op_num_threads=1"

    def export(self, order: Order) -> Made:
        """There is nothing to make."""
        return self.made(Path(order.onnx))

    def open(self, path: Path, order: Order) -> Call:
        """A session on one thread."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def call(feed: Any) -> Any:
            return session.run(None, feed)

        return call


class OnnxRuntimeInt8(OnnxRuntime):
    """Static quantisation: QDQ, a scale for each channel of the weights, ranges by MinMax."""

    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    call: ClassVar[str] = "quantize_static(QDQ, per_channel, QUInt8 activations, QInt8 weights), session.run"
    precision: ClassVar[Precision] = "int8"

    def export(self, order: Order) -> Made:
        """Prepare the graph, calibrate, quantise."""
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        folder = Path(order.folder)
        source, prepared, path = folder / "source.onnx", folder / "prepared.onnx", folder / "int8.onnx"
        model = onnx.load(order.onnx)
        if model.opset_import[0].version < _QDQ_OPSET:
            model = onnx.version_converter.convert_version(model, _QDQ_OPSET)
        onnx.save(model, source)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(path),
            _reader(order),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return self.made(path)


def _reader(order: Order) -> Any:
    """The calibration, one sample after the other."""
    import numpy as np
    from benchmarks.networks.samples import one_by_one
    from onnxruntime.quantization import CalibrationDataReader

    arrays = np.load(order.calibration)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._samples = one_by_one({name: arrays[name] for name in order.shapes})

        def get_next(self) -> dict[str, Any] | None:
            return next(self._samples, None)

    return Reader()
