"""Golden vectors from raw images: the model's input made again on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.calls import pick_calls
from outrider.runtime.images.run import ImageModel

Array = NDArray[Any]


def from_raw(
    model: ImageModel, inputs: Mapping[str, Array], raw: Mapping[str, Array]
) -> tuple[NDArray[np.intp], dict[str, Array]]:
    """The golden rows or calls that raw images belong to, and their inputs, with those images prepared here.

    `inputs`: all golden inputs; `raw`: images by place (see `Golden.raw`). Raises BadDataError for what is no image.
    """
    images = {int(place): image for place, image in raw.items()}
    together = model.together(1)
    chosen = np.array(sorted({place // together for place in images}), np.intp)
    given = pick_calls(inputs, chosen)
    tensor = given[model.plan.input].copy()
    slots = tensor.reshape(-1, *model.plan.shape)
    for place, image in images.items():
        call = int(np.searchsorted(chosen, place // together))
        slots[call * together + place % together] = model.prepare(image).tensor[0]
    return chosen, {**given, model.plan.input: tensor}
