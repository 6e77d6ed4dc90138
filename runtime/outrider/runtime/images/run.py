"""A model with an image plan: images in, results out."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.bundle.manifest import Manifest
from outrider.runtime.errors import BadDataError
from outrider.runtime.images import STEPS
from outrider.runtime.images.check import counts_images, image_spec, images_a_call
from outrider.runtime.images.placement import Placement
from outrider.runtime.images.plan import Boxes, ImagePlan, Label, Postprocess, TopK, kind_of
from outrider.runtime.images.preparation import Prepared, prepare
from outrider.runtime.images.results import Classification, Detection, ImageResult

Array = NDArray[Any]
Run = Callable[[dict[str, Array]], Mapping[str, Array]]
_HINT = "compile the model with an image plan: compile_model(..., images=ImagePlan(...)), or --images"


class ImageModel:
    """What `Session.predict_image` and its like are made of.

    `run` runs the model on arrays by name. Raises BadDataError where the manifest has no image plan.
    """

    def __init__(self, manifest: Manifest, run: Run) -> None:
        if manifest.images is None:
            raise BadDataError("the bundle carries no image plan, so it takes no images", hint=_HINT)
        self.plan: ImagePlan = manifest.images
        self.steps: tuple[Postprocess, ...] = manifest.postprocess
        self._signature, self._run = manifest.signature, run
        self._spec = image_spec(self.plan, self._signature)
        outputs = self._signature.outputs
        self._counted = {spec.name for spec in outputs if counts_images(spec, self._spec, self.plan)}

    def prepare(self, images: Any) -> Prepared:
        """The images as the model takes them (`outrider.runtime.images.prepare`). Raises BadDataError."""
        return prepare(self.plan, images)

    def predict(self, images: Any) -> list[ImageResult]:
        """One result an image, in as few calls as the model allows. Takes what `prepare` takes. Raises BadDataError."""
        ready = self.prepare(images)
        together = self.together(len(ready.tensor))
        results: list[ImageResult] = []
        for start in range(0, len(ready.tensor), together):
            part = slice(start, start + together)
            results += self._call(Prepared(ready.tensor[part], ready.placements[part]))
        return results

    def detect(self, images: Any) -> list[tuple[Detection, ...]]:
        """The detections of each image. Raises BadDataError where no step gives any."""
        self._need(Boxes, "boxes")
        return [result.detections or () for result in self.predict(images)]

    def classify(self, images: Any) -> list[tuple[Classification, ...]]:
        """The classes of each image, best first. Raises BadDataError where no step gives any."""
        self._need(TopK, "top_k")
        return [result.classes or () for result in self.predict(images)]

    def _need(self, step: type[Boxes | TopK], name: str) -> None:
        if not any(isinstance(found, step) for found in self.steps):
            known = ", ".join(kind_of(found) for found in self.steps) or "none"
            raise BadDataError(f"the bundle has no step {name!r} (its steps: {known})", hint=_HINT)

    def together(self, count: int) -> int:
        """How many of `count` images a call takes, or as many as the model insists on."""
        if self._signature.batched:
            return count
        return images_a_call(self._spec, self.plan) or 1

    def _call(self, ready: Prepared) -> list[ImageResult]:
        count = len(ready.tensor)
        outputs = self._run({self._spec.name: self._tensor(ready.tensor)})
        return [
            postprocess(
                self.steps,
                {name: array[i] if name in self._counted else array for name, array in outputs.items()},
                ready.placements[i],
                self._signature.class_labels,
            )
            for i in range(count)
        ]

    def _tensor(self, tensor: Array) -> Array:
        """The images of one call; a call of a fixed size is filled up with copies of the last image."""
        if len(self._spec.shape) == 3:
            return np.asarray(tensor[0])
        lacking = self.together(len(tensor)) - len(tensor)
        return np.concatenate([tensor, *[tensor[-1:]] * lacking]) if lacking else tensor


def postprocess(
    steps: tuple[Postprocess, ...],
    outputs: Mapping[str, Array],
    placement: Placement,
    labels: tuple[Label, ...] = (),
) -> ImageResult:
    """The steps in order on one image's outputs, each by name and without an axis for images.

    `labels`: the names of classes where a step has none. The same code runs on the device. Raises BadDataError for an
    output that is not there or does not have the step's shape.
    """
    result = ImageResult(outputs={name: np.asarray(array) for name, array in outputs.items()}, placement=placement)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out where it matters
        for step in steps:
            try:
                result = _step(kind_of(step))(step, result, labels)
            except (KeyError, IndexError, ValueError) as e:
                shapes = ", ".join(f"{name} {array.shape}" for name, array in result.outputs.items())
                raise BadDataError(f"the step {kind_of(step)!r} does not fit the outputs: {shapes}") from e
    return result


@cache
def _step(kind: str) -> Callable[[Any, ImageResult, tuple[Label, ...]], ImageResult]:
    apply: Callable[[Any, ImageResult, tuple[Label, ...]], ImageResult] = pkgutil.resolve_name(STEPS[kind])
    return apply
