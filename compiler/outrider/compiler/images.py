"""Image plans on the way into a bundle: read from TOML, checked against the model, and used on the calibration."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from outrider.compiler.given import Given
from outrider.compiler.model import Array, Model
from outrider.runtime.bundle.manifest import Signature
from outrider.runtime.calls import rows_of_call
from outrider.runtime.errors import BadDataError, NotFoundError
from outrider.runtime.images import ImagePlan, Postprocess, pack_priors, prepare
from outrider.runtime.images.check import contradiction, image_spec
from outrider.runtime.images.preparation import as_images

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

IMAGES = "images"  # the name under which a mapping may hold them, beside the input's own


class ImageFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`images.toml`: how an image becomes the model's input, and what becomes of the outputs, step by step."""

    image: ImagePlan
    postprocess: tuple[Postprocess, ...] = ()


def read_image_file(path: Path | str) -> ImageFile:
    """A plan in TOML: a table `image` and tables `postprocess`, with the fields of the records.

    `priors` of a decoder is the path of an `.npy` file [anchors, 4], seen from the plan. Raises NotFoundError,
    BadDataError.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise NotFoundError(f"there is no image plan {path}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
        raise BadDataError(f"{path} is not readable TOML: {e}") from e
    _read_priors(data, path.parent)
    return _valid(data, str(path))


def with_images(given: Given, images: ImagePlan | Path | str | None, steps: Sequence[Postprocess]) -> Given:
    """The same with the plan, and with calibration that is given as images prepared by it.

    Raises NotFoundError, BadDataError.
    """
    if images is None:
        if steps:
            raise BadDataError("there are steps for outputs, but no image plan", hint="give images=ImagePlan(...)")
        return given
    if isinstance(images, ImagePlan):
        file = _valid(msgspec.to_builtins(ImageFile(image=images, postprocess=tuple(steps))), "the image plan")
    else:
        file = read_image_file(images)
        file = msgspec.structs.replace(file, postprocess=(*file.postprocess, *steps))
    calibration, pictures = prepare_calibration(given.calibration, file.image)
    return replace(given, images=file.image, postprocess=file.postprocess, calibration=calibration, pictures=pictures)


def fit_images(given: Given, model: Model) -> Given:
    """The same, with prepared images as calls of one, where the model takes one image in a call.

    Raises BadDataError for a plan or steps that do not fit the model.
    """
    plan, signature = given.images, model.signature
    wrong = contradiction(plan, given.postprocess, signature)
    if wrong is not None:
        raise BadDataError(wrong)
    if plan is None or not given.pictures:
        return given
    if given.features is not None:
        raise BadDataError("a model with a feature plan takes no images")
    return replace(given, calibration=in_calls(given.calibration, plan, signature))


def prepare_calibration(calibration: Any, plan: ImagePlan) -> tuple[Any, tuple[Array, ...]]:
    """Calibration that was given as images, prepared: a dict of arrays; and the images. Any other as it is, and none.

    Raises BadDataError.
    """
    images, rest = calibration, {}
    if isinstance(calibration, Mapping):
        name = plan.input if plan.input in calibration else IMAGES
        rest = {key: value for key, value in calibration.items() if key != name}
        images = calibration.get(name)
    if not _are_images(images):
        return calibration, ()
    pictures = tuple(as_images(images))
    return {plan.input: prepare(plan, pictures).tensor, **rest}, pictures


def in_calls(calibration: dict[str, Array], plan: ImagePlan, signature: Signature) -> dict[str, Array]:
    """Prepared images as calls of one, where the model takes one image in a call and its outputs do not count them."""
    single = len(image_spec(plan, signature).shape) == len(plan.shape)
    if signature.batched or single or rows_of_call(signature) is not None:
        return calibration
    return {**calibration, plan.input: calibration[plan.input][:, None]}


def _valid(data: Any, origin: str) -> ImageFile:
    try:
        return msgspec.convert(data, ImageFile)
    except msgspec.ValidationError as e:
        raise BadDataError(f"{origin} cannot be used: {e}") from e


def _read_priors(data: Any, folder: Path) -> None:
    """Put the priors themselves where their path is."""
    steps = data.get("postprocess", [])
    for step in steps if isinstance(steps, list) else []:
        decode = step.get("decode") if isinstance(step, dict) else None
        if isinstance(decode, dict) and isinstance(decode.get("priors"), str):
            decode["priors"] = pack_priors(_load_npy(folder / decode["priors"]))


def _load_npy(path: Path) -> Array:
    try:
        found: Array = np.load(path, allow_pickle=False)
    except FileNotFoundError as e:
        raise NotFoundError(f"there is no file {path}") from e
    except (ValueError, OSError, EOFError) as e:
        raise BadDataError(f"{path} is not a readable .npy file: {e}") from e
    return found


def _are_images(value: Any) -> bool:
    """Whether these are images rather than a tensor that the model takes."""
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim == 4 and value.shape[3] == 3
    return isinstance(value, Sequence) and len(value) > 0 and all(_is_image(one) for one in value)


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3)
