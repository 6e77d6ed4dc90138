"""Images: one plan of preparing them and of reading the outputs, run by the same code in training and on the device.

```python
plan = ImagePlan(input="images", size=(320, 320), fit="letterbox", pad=114)
x = prepare(plan, image).tensor   # float32 [1, 3, 320, 320] from uint8 [h, w, 3], RGB
```

Nothing but NumPy is needed. A session does all of it: `session.predict_image(image)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outrider.runtime.images.plan import AnchorFree, Boxes, Decoded, ImagePlan, Postprocess, Softmax, Ssd, TopK, Yolo

if TYPE_CHECKING:
    from outrider.runtime.images.decoders.ssd import pack_priors
    from outrider.runtime.images.placement import Placement
    from outrider.runtime.images.preparation import Prepared, prepare
    from outrider.runtime.images.results import Box, Classification, Detection, ImageResult
    from outrider.runtime.images.run import postprocess

#: kind of a step -> "module:function" (record, result so far, the signature's class labels) -> result.
STEPS: dict[str, str] = {
    "softmax": "outrider.runtime.images.softmax:apply",
    "top_k": "outrider.runtime.images.topk:apply",
    "boxes": "outrider.runtime.images.boxes:apply",
}

#: kind of `Boxes.decode` -> "module:function" (see `outrider.runtime.images.boxes.Decoder`).
DECODERS: dict[str, str] = {
    "yolo": "outrider.runtime.images.decoders.yolo:decode",
    "anchor_free": "outrider.runtime.images.decoders.anchor_free:decode",
    "ssd": "outrider.runtime.images.decoders.ssd:decode",
    "decoded": "outrider.runtime.images.decoders.decoded:decode",
}

_LAZY = {
    "pack_priors": "decoders.ssd",
    "Placement": "placement",
    "Prepared": "preparation",
    "prepare": "preparation",
    "Box": "results",
    "Classification": "results",
    "Detection": "results",
    "ImageResult": "results",
    "postprocess": "run",
}

__all__ = [
    "DECODERS",
    "STEPS",
    "AnchorFree",
    "Box",
    "Boxes",
    "Classification",
    "Decoded",
    "Detection",
    "ImagePlan",
    "ImageResult",
    "Placement",
    "Postprocess",
    "Prepared",
    "Softmax",
    "Ssd",
    "TopK",
    "Yolo",
    "pack_priors",
    "postprocess",
    "prepare",
]


def __getattr__(name: str) -> Any:  # lazy: the manifest needs the records, not numpy
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
