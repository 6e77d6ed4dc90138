"""What must hold between an image plan, its steps and the model's signature, found out without running anything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from outrider.runtime.images.plan import Boxes, Decoded, ImagePlan, Postprocess, Ssd, TopK, Yolo, kind_of

if TYPE_CHECKING:  # the bundle's own checks come here
    from outrider.runtime.bundle.manifest import Signature, TensorSpec

Shape = tuple[int | None, ...]

_PRIOR_BYTES = 16  # four float32


def contradiction(plan: ImagePlan | None, steps: tuple[Postprocess, ...], signature: Signature) -> str | None:
    """The first thing that does not fit, in words; None where everything does."""
    return next(_contradictions(plan, steps, signature), None)


def image_spec(plan: ImagePlan, signature: Signature) -> TensorSpec:
    """The input that takes the images, which must be there."""
    return next(spec for spec in signature.inputs if spec.name == plan.input)


def images_a_call(image: TensorSpec, plan: ImagePlan) -> int | None:
    """How many images the input takes in a call; None: that size is free."""
    return image.shape[0] if len(image.shape) > len(plan.shape) else 1


def counts_images(spec: TensorSpec, image: TensorSpec, plan: ImagePlan) -> bool:
    """Whether axis 0 of an output counts the images of a call; otherwise the output belongs to the call as a whole."""
    counted = len(image.shape) == len(plan.shape) + 1
    return counted and len(spec.shape) > 0 and spec.shape[0] == image.shape[0]


def _contradictions(plan: ImagePlan | None, steps: tuple[Postprocess, ...], signature: Signature) -> Iterator[str]:
    if plan is None:
        if steps:
            yield "there are steps for outputs, but no image plan"
        return
    yield from _in_itself(plan)
    if [spec.name for spec in signature.inputs] != [plan.input]:
        names = ", ".join(spec.name for spec in signature.inputs)
        yield f"the image plan is for the input {plan.input!r} alone; the model takes {names}"
        return
    yield from _input(plan, image_spec(plan, signature), signature)
    for step in steps:
        yield from _step(step, plan, signature)


def _in_itself(plan: ImagePlan) -> Iterator[str]:
    if plan.shorter is not None and plan.fit != "crop":
        yield f"'shorter' is for fit = \"crop\", not {plan.fit!r}"
    if plan.shorter is not None and plan.shorter < max(plan.size):
        yield f"'shorter' is {plan.shorter}, which does not cover the size {plan.size[0]}x{plan.size[1]}"
    for what, values in (("mean", plan.mean), ("std", plan.std)):
        if len(values) not in (0, 1, plan.channels):
            yield f"'{what}' has {len(values)} values for {plan.channels} channels"
    numbers = (*plan.mean, *plan.std, *(() if plan.scale is None else (plan.scale,)))
    if not all(map(math.isfinite, numbers)) or any(value <= 0 for value in plan.std):
        yield "'scale', 'mean' and 'std' must be finite, and 'std' above 0"


def _input(plan: ImagePlan, spec: TensorSpec, signature: Signature) -> Iterator[str]:
    given = f"{plan.dtype} of {plan.layout} {_show(plan.shape)} an image"
    wanted = f"{spec.dtype} {_show(spec.shape)}"
    message = f"the image plan gives {given}; the input {spec.name!r} takes {wanted}"
    shape = spec.shape if len(spec.shape) == len(plan.shape) and not signature.batched else spec.shape[1:]
    if spec.dtype != plan.dtype or not _matches(shape, plan.shape):
        yield message
        return
    together = images_a_call(spec, plan)
    if together is not None and together > 1:
        for output in signature.outputs:
            if not counts_images(output, spec, plan):
                yield f"the model takes {together} images at a time, but {output.name!r} has no axis of that size"


def _step(step: Postprocess, plan: ImagePlan, signature: Signature) -> Iterator[str]:
    specs = {spec.name: spec for spec in signature.outputs}
    names = _reads(step)
    for name in names:
        if name not in specs:
            yield f"{_kind(step)} reads {name!r}, which is no output; there are {', '.join(specs)}"
            return
        if specs[name].dtype == "string":
            yield f"{_kind(step)} reads {name!r}, which is text"
    image = image_spec(plan, signature)
    shapes = [specs[name].shape[1:] if counts_images(specs[name], image, plan) else specs[name].shape for name in names]
    if isinstance(step, Boxes):
        yield from _boxes(step, shapes)
    elif not shapes[0]:
        yield f"{_kind(step)} needs an axis of classes; {names[0]!r} gives one value an image"
    elif isinstance(step, TopK) and any(size not in (None, 1) for size in shapes[0][:-1]):
        yield f"{_kind(step)} needs one vector an image; {step.output!r} gives {_show(shapes[0])}"


def _boxes(step: Boxes, shapes: list[Shape]) -> Iterator[str]:
    kind = step.decode
    if isinstance(kind, Decoded):
        yield from _decoded(kind, shapes)
    elif isinstance(kind, Ssd):
        yield from _ssd(kind, shapes)
    else:
        if isinstance(kind, Yolo):
            form, axis = "[anchors, 5 + classes]", 1
        else:
            form, axis = ("[4 + classes, anchors]", 0) if kind.anchors_last else ("[anchors, 4 + classes]", 1)
        values = shapes[0][axis] if len(shapes[0]) == 2 else 0
        if values is not None and values < 5:
            yield f"{_kind(step)} needs {form} an image; {kind.output!r} gives {_show(shapes[0])}"


def _decoded(kind: Decoded, shapes: list[Shape]) -> Iterator[str]:
    forms: dict[int, list[Shape]] = {1: [(None, 6)], 3: [(None, 4), (None,), (None,)]}
    wanted = forms.get(len(shapes))
    if wanted is None:
        yield f"'decoded' boxes are one output or three, not {len(kind.outputs)}"
    elif not all(map(_matches, shapes, wanted)):
        yield f"'decoded' boxes need {_listed(wanted)} an image; there are {_listed(shapes)}"


def _ssd(kind: Ssd, shapes: list[Shape]) -> Iterator[str]:
    anchors = len(kind.priors) // _PRIOR_BYTES
    if not anchors or len(kind.priors) % _PRIOR_BYTES:
        yield "the priors are not whole rows of four float32 values"
    elif not _matches(shapes[0], (anchors, 4)) or not _matches(shapes[1], (anchors, None)):
        yield f"there are {anchors} priors; the outputs are {_listed(shapes)} an image"
    elif kind.background is not None and shapes[1][1] is not None and not kind.background < shapes[1][1]:
        yield f"the background is class {kind.background} of {shapes[1][1]}"
    elif shapes[1][1] == 1 and kind.background is not None:
        yield "there is no class but the background"


def _reads(step: Postprocess) -> tuple[str, ...]:
    if not isinstance(step, Boxes):
        return (step.output,)
    kind = step.decode
    if isinstance(kind, Decoded):
        return kind.outputs
    return (kind.locations, kind.scores) if isinstance(kind, Ssd) else (kind.output,)


def _kind(step: Postprocess) -> str:
    record = step.decode if isinstance(step, Boxes) else step
    return repr(kind_of(record))


def _matches(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        found is None or size is None or found == size for found, size in zip(shape, wanted, strict=True)
    )


def _listed(shapes: list[Shape]) -> str:
    return " and ".join(map(_show, shapes))


def _show(shape: Shape) -> str:
    return f"[{', '.join('n' if size is None else str(size) for size in shape)}]"
