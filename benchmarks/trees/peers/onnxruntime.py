"""ONNX Runtime, on the model as onnxmltools or skl2onnx converts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from benchmarks.trees.peers import Order, Peer, Predict


class OnnxRuntime(Peer):
    """One session on one thread, asked for probabilities only (no ZipMap, no labels)."""

    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnxmltools", "skl2onnx")
    modules: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    call: ClassVar[str] = 'session.run(["probabilities"], {input: rows}), intra_op_num_threads=1'

    def export(self, order: Order) -> Path:
        """Convert to ai.onnx.ml tree operators."""
        import onnxmltools
        import skl2onnx
        from onnxmltools.convert.common.data_types import FloatTensorType

        path = order.folder / "model.onnx"
        types = [("rows", FloatTensorType([None, order.case.rows.shape[1]]))]
        if order.case.spec.framework == "xgboost":
            order.case.model.feature_names = None  # the converter knows f0, f1, ... only
            graph = onnxmltools.convert_xgboost(order.case.model, initial_types=types)
        elif order.case.spec.framework == "lightgbm":
            graph = onnxmltools.convert_lightgbm(order.case.model, initial_types=types, zipmap=False)
        else:
            graph = skl2onnx.to_onnx(order.case.model, order.case.rows[:1], options={"zipmap": False})
        path.write_bytes(graph.SerializeToString())
        return path

    def open(self, path: Path) -> Predict:
        """A session on one thread."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name, wanted = session.get_inputs()[0].name, [session.get_outputs()[-1].name]

        def predict(rows: Any) -> Any:
            return session.run(wanted, {name: rows})[0]

        return predict
