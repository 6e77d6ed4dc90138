"""The file of an ncnn artifact: a canonical zip of ncnn's two files and of what the engine has to know about them.

`model.json` is an `NcnnPlan`, `model.param` the graph as text, `model.bin` the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from outrider.runtime.bundle.archive import pack, unpack
from outrider.runtime.errors import BadBundleError

NcnnPrecision = Literal["float32", "float16"]
Extent = Annotated[int, Meta(ge=1)]

PLAN, GRAPH, WEIGHTS = "model.json", "model.param", "model.bin"


class NcnnTensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input or output of the graph, float32.

    `shape` is that of one row, without the batch axis. `batch_axis`: ncnn sees the row with a batch axis of size 1
    before it, since the graph has kept that axis.
    """

    blob: str
    shape: tuple[Extent, ...]
    batch_axis: bool = False


class NcnnPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How ncnn runs the graph: its inputs and outputs in the order of the artifact's ABI, and ncnn's options.

    `float16` lets ncnn store and compute in half precision where the device can; `float32` forbids it. `winograd`
    allows convolutions by Winograd's transform, which need more memory and round otherwise.
    """

    inputs: Annotated[tuple[NcnnTensor, ...], Meta(min_length=1)]
    outputs: Annotated[tuple[NcnnTensor, ...], Meta(min_length=1)]
    precision: NcnnPrecision = "float32"
    winograd: bool = True


@dataclass(frozen=True, kw_only=True)
class NcnnFile:
    """An artifact taken apart. `graph` is ncnn's `.param` (text), `weights` its `.bin`."""

    plan: NcnnPlan
    graph: bytes
    weights: bytes

    def pack(self) -> bytes:
        """The artifact's bytes; the same parts give the same bytes."""
        plan = msgspec.json.format(msgspec.json.encode(self.plan), indent=2) + b"\n"
        return b"".join(pack({PLAN: plan, GRAPH: self.graph, WEIGHTS: self.weights}))

    @classmethod
    def unpack(cls, data: bytes) -> NcnnFile:
        """Take an artifact apart. Raises BadBundleError for anything but what `pack` makes."""
        files = unpack(data, checksums=False)
        if list(files) != [PLAN, GRAPH, WEIGHTS]:
            raise BadBundleError(f"an ncnn artifact holds {PLAN}, {GRAPH} and {WEIGHTS}, in this order")
        plan, graph, weights = map(bytes, files.values())
        try:
            return cls(plan=msgspec.json.decode(plan, type=NcnnPlan), graph=graph, weights=weights)
        except msgspec.MsgspecError as e:
            raise BadBundleError(f"{PLAN} of an ncnn artifact cannot be read: {e}") from e
