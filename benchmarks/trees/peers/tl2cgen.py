"""tl2cgen: if-else code, compiled by gcc."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from benchmarks.trees.peers import NotSupported, Order, Peer, Predict
from benchmarks.trees.peers.gtil import treelite_model

_S_PER_NODE = 0.8e-3  # of gcc, with a margin: 0.4 ms on plain models, about twice that with categories


class Tl2cgen(Peer):
    """`Predictor.predict` of a DMatrix that is made in the call, as there is no other way in from an array."""

    packages: ClassVar[tuple[str, ...]] = ("tl2cgen",)
    modules: ClassVar[tuple[str, ...]] = ("tl2cgen",)
    call: ClassVar[str] = "predictor.predict(tl2cgen.DMatrix(rows)), nthread=1"

    def export(self, order: Order) -> Path:
        """Generate C and compile it, on one core as the other compilers do."""
        import tl2cgen

        model = treelite_model(order.case)
        trees = (model.get_tree_accessor(tree) for tree in range(model.num_tree))
        nodes = sum(int(tree.get_field("num_nodes")[0]) for tree in trees)
        estimate = nodes * _S_PER_NODE
        if estimate > order.patience_s:
            raise NotSupported(f"{nodes:,} nodes would take gcc some {estimate:,.0f} s")
        path = order.folder / "tl2cgen.so"
        params = {"parallel_comp": 16, "quantize": 1}
        tl2cgen.export_lib(model, toolchain="gcc", libpath=path, params=params, nthread=1, verbose=False)
        return path

    def open(self, path: Path) -> Predict:
        """The library on one thread."""
        import tl2cgen

        predictor = tl2cgen.Predictor(path, nthread=1)

        def predict(rows: Any) -> Any:
            return predictor.predict(tl2cgen.DMatrix(rows))

        return predict
