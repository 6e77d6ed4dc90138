"""Forests as native code: data tables and a fixed C kernel, in one library that needs nothing on the device."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from outrider.compiler.backends import Built, Candidate, artifact_entry
from outrider.compiler.model import Model
from outrider.compiler.trees.emit import KernelOptions, block_rows, emit
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.layout import Tables, lay_out
from outrider.runtime.target import Requirements, Target
from outrider.targets.toolchain import build_shared

_LANES = (8, 4, 16)
_LANES_NARROW = (4, 8)  # few registers: 32-bit ARM has 14 to use


class NativeBackend:
    """Kernel K2 with several numbers of interleaved walks; which is fastest depends on registers and caches."""

    def __init__(self) -> None:
        self._laid_out: tuple[Forest, Tables] | None = None

    def refuses(self, model: Model, target: Target) -> str | None:
        """Anything but a forest."""
        if not isinstance(model.payload, Forest):
            return "the model is not a tree ensemble, which is what this backend compiles"
        return f"there is no toolchain for {target.arch} yet" if target.arch == "wasm32" else None

    def candidates(self, model: Model, target: Target) -> Sequence[Candidate]:
        """One a number of lanes."""
        precision = model.payload.precision if isinstance(model.payload, Forest) else "float32"
        lanes = _LANES_NARROW if target.arch == "armv7" else _LANES
        return [Candidate("native", precision, {"kernel": "k2", "lanes": str(count)}) for count in lanes]

    def build(self, model: Model, candidate: Candidate, target: Target) -> Built:
        """Lay out, emit, compile for the target's baseline CPU."""
        assert isinstance(model.payload, Forest)
        tables = self._tables(model.payload)
        options = KernelOptions(lanes=int(candidate.options["lanes"]))
        with tempfile.TemporaryDirectory(prefix="outrider-native-") as folder:
            data = build_shared(emit(tables, options), Path(folder, "model.so"), target)
        scratch = block_rows(tables, options) * (4 * tables.columns + 8 * model.payload.outputs)
        needs = Requirements(arch=target.arch, features=_baseline(target), memory_bytes=len(data) + scratch)
        entry = artifact_entry(
            model, candidate, data, file="model.so", kind="native", package=None, triple=target.triple, needs=needs
        )
        return Built(candidate, data, entry)

    def _tables(self, forest: Forest) -> Tables:
        """The layout, which all candidates of one model share."""
        if self._laid_out is None or self._laid_out[0] is not forest:
            self._laid_out = (forest, lay_out(forest))
        return self._laid_out[1]


def _baseline(target: Target) -> tuple[str, ...]:
    """The ISA features that the toolchain's baseline CPU of this architecture uses, a subset of any such target's."""
    from outrider.targets import board_of

    return board_of(target).features
