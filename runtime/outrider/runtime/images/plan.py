"""The records of a bundle that takes images: how one becomes the model's input, and what its outputs become.

They travel in the manifest and say everything; `outrider.runtime.images` runs them, the same code in training and on
the device. Coordinates are pixels with the origin at the outer corner of the first: a box of the whole image is
[0, 0, width, height].
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Fit = Literal["stretch", "letterbox", "crop"]
Interpolation = Literal["nearest", "bilinear", "antialias", "area"]
Colour = Literal["RGB", "BGR", "grey"]
Layout = Literal["NCHW", "NHWC"]
PixelDtype = Literal["float32", "float16", "uint8", "int8"]
Units = Literal["pixels", "fraction"]
Activation = Literal["none", "sigmoid", "softmax"]
Label = int | str

Side = Annotated[int, Meta(ge=1, le=16384)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=1, le=100_000)]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Immutable, named fields only, nothing unknown."""


class ImagePlan(_Record, frozen=True, kw_only=True):
    """From an image, uint8 [h, w, 3] RGB, to the tensor `input`.

    - `size`: (height, width) of the model's input, pixels.
    - `fit`: `stretch` to that size; `letterbox` keeps the aspect and fills the rest with `pad`; `crop` keeps the aspect
      and cuts what is beyond, evenly on both sides. `align`: where a letterboxed image goes. `shorter`: the length of
      the shorter side before the cut, pixels; None: as short as covers `size`.
    - `interpolation`: see `outrider.runtime.images.filters`.
    - `colour`: what the channels are, in their order. `layout`: the order of the axes; N is left out where the model
      takes a single image without it.
    - A value of the tensor is (pixel * scale - mean) / std, where a pixel is 0 to 255. `scale` None is 1/255 for floats
      and 1 for integers, which are rounded (half to even) and clipped. `mean` and `std` hold one value, one a channel
      in the order of `colour`, or none. `pad` is a pixel.
    """

    input: str
    size: tuple[Side, Side]
    fit: Fit = "stretch"
    align: Literal["centre", "corner"] = "centre"
    shorter: Side | None = None
    interpolation: Interpolation = "antialias"
    colour: Colour = "RGB"
    layout: Layout = "NCHW"
    dtype: PixelDtype = "float32"
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pad: Annotated[int, Meta(ge=0, le=255)] = 0

    @property
    def channels(self) -> int:
        """3, or 1 for grey."""
        return 1 if self.colour == "grey" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one prepared image, without N."""
        height, width = self.size
        return (self.channels, height, width) if self.layout == "NCHW" else (height, width, self.channels)


class Softmax(_Record, frozen=True, kw_only=True, tag="softmax", tag_field="kind"):
    """Replace `output` by its softmax along the last axis."""

    output: str


class TopK(_Record, frozen=True, kw_only=True, tag="top_k", tag_field="kind"):
    """The `k` largest values of `output`, [classes] for an image, as `Classification`s, largest first.

    `labels` name the classes; where there are none, the signature's class labels do, or else their numbers.
    """

    output: str
    k: Count = 5
    labels: tuple[Label, ...] = ()


class Yolo(_Record, frozen=True, kw_only=True, tag="yolo", tag_field="kind"):
    """`output` is [anchors, 5 + classes] for an image: centre x, centre y, width, height, objectness, then classes.

    A score is objectness times the best class; of no classes, objectness. `activation` is applied to both before.
    """

    output: str
    units: Units = "pixels"
    activation: Literal["none", "sigmoid"] = "none"


class AnchorFree(_Record, frozen=True, kw_only=True, tag="anchor_free", tag_field="kind"):
    """`output` is [4 + classes, anchors] for an image, or [anchors, 4 + classes] where not `anchors_last`.

    The first four are centre x, centre y, width, height, or two corners (`form` "xyxy"); a score is the best class.
    """

    output: str
    anchors_last: bool = True
    form: Literal["cxcywh", "xyxy"] = "cxcywh"
    units: Units = "pixels"
    activation: Literal["none", "sigmoid"] = "none"


class Ssd(_Record, frozen=True, kw_only=True, tag="ssd", tag_field="kind"):
    """Offsets from prior boxes: `locations` [anchors, 4] and `scores` [anchors, classes] for an image.

    `priors`: float32 little-endian [anchors, 4], centre x, centre y, width, height as shares of the input's size
    (`pack_priors`). With variances (a, b): centre = prior centre + offset * a * prior size, size = prior size *
    exp(offset * b). `background`: the class that is none, left out and not counted; None where there is no such class.
    """

    locations: str
    scores: str
    priors: bytes
    variances: tuple[float, float] = (0.1, 0.2)
    background: Annotated[int, Meta(ge=0)] | None = 0
    activation: Activation = "softmax"


class Decoded(_Record, frozen=True, kw_only=True, tag="decoded", tag_field="kind"):
    """The model decodes by itself: one output [k, 6] for an image, of x1, y1, x2, y2, score, class; or three: corners
    [k, 4], scores [k], classes [k].

    `order` "yxyx": the corners are y1, x1, y2, x2. Rows of score 0 fill up.
    """

    outputs: tuple[str, ...]
    units: Units = "pixels"
    order: Literal["xyxy", "yxyx"] = "xyxy"


Decode = Yolo | AnchorFree | Ssd | Decoded


class Boxes(_Record, frozen=True, kw_only=True, tag="boxes", tag_field="kind"):
    """Boxes of the outputs as `Detection`s on the source image, best score first.

    What scores below `score_threshold` goes first; of the rest the `max_candidates` best go on. A box falls where one
    of a higher score overlaps it by more than `iou_threshold` (intersection over union), of the same class if
    `class_aware`; None: none falls. At most `max_detections` remain. `labels` as for `TopK`.
    """

    decode: Decode
    score_threshold: Share = 0.25
    iou_threshold: Share | None = 0.45
    class_aware: bool = True
    max_candidates: Count = 1000
    max_detections: Count = 100
    labels: tuple[Label, ...] = ()


Postprocess = Softmax | TopK | Boxes


def kind_of(record: Postprocess | Decode) -> str:
    """The `kind` of a step or of a way to decode boxes, by which the tables know it."""
    return str(record.__struct_config__.tag)
