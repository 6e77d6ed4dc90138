"""Plans and steps in a manifest: they survive being written, and what contradicts the signature is refused."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.runtime.bundle import Golden, Manifest, Signature, TensorSpec, decode_manifest
from outrider.runtime.bundle.checks import encode_manifest
from outrider.runtime.errors import BadBundleError, BadDataError
from outrider.runtime.features.plan import FeaturePlan, RawColumn
from outrider.runtime.images import AnchorFree, Boxes, Decoded, ImagePlan, Softmax, Ssd, TopK, Yolo, pack_priors
from outrider.runtime.images.check import contradiction
from outrider.runtime.images.run import ImageModel

Shape = tuple[int | None, ...]
replace = msgspec.structs.replace
PLAN = ImagePlan(input="x", size=(4, 5))
PRIORS = pack_priors(np.full((7, 4), 0.5))
EVERY = (
    Softmax(output="classes"),
    TopK(output="classes", k=3, labels=("a", 2)),
    Boxes(decode=Yolo(output="rows")),
    Boxes(decode=AnchorFree(output="rows", anchors_last=False), iou_threshold=None),
    Boxes(decode=Ssd(locations="corners", scores="scores", priors=PRIORS, background=None)),
    Boxes(decode=Decoded(outputs=("found",))),
    Boxes(decode=Decoded(outputs=("corners", "one", "one"))),
)


def signature(
    image: Shape = (None, 3, 4, 5), *, batched: bool = True, dtype: Any = "float32", **more: Any
) -> Signature:
    first: Shape = image[:1] if len(image) == 4 else ()
    shapes: dict[str, Shape] = {
        "classes": (3,),
        "rows": (9, 8),
        "corners": (7, 4),
        "scores": (7, 3),
        "found": (7, 6),
        "one": (7,),
    }
    return Signature(
        inputs=(TensorSpec(name="x", dtype=dtype, shape=image),),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=(*first, *s)) for name, s in shapes.items()),
        predict="classes",
        batched=batched,
        **more,
    )


@pytest.fixture
def manifest(make_parts: Callable[..., Any]) -> Manifest:
    """A sound manifest of a model that takes images; its golden row has one raw image."""
    made, _ = make_parts()
    sound = signature()
    outputs = tuple(spec.name for spec in sound.outputs)
    path = made.golden.inputs["features"]
    golden = Golden(
        rows=3,
        evidence="calibration",
        inputs={"x": path},
        outputs={"classes": path},
        raw={"2": path},
        atol=0.0,
        rtol=0.0,
    )
    artifact = replace(made.artifacts[0], inputs=("x",), outputs=outputs)
    changes = {"signature": sound, "artifacts": (artifact,), "golden": golden, "images": PLAN, "postprocess": EVERY}
    changed: Manifest = replace(made, **changes)
    return changed


def test_every_record_survives(manifest: Manifest) -> None:
    again = decode_manifest(encode_manifest(manifest))
    assert again == manifest
    assert again.postprocess == EVERY
    assert decode_manifest(encode_manifest(replace(manifest, images=None, postprocess=(), golden=no_raw(manifest))))


def no_raw(manifest: Manifest) -> Golden:
    return replace(manifest.golden, raw={})


@given(
    scale=st.none() | st.floats(1e-6, 1e6),
    mean=st.lists(st.floats(-300, 300), min_size=3, max_size=3),
    std=st.lists(st.floats(1e-3, 300), min_size=1, max_size=1),
    pad=st.integers(0, 255),
)
def test_numbers_survive(scale: float | None, mean: list[float], std: list[float], pad: int) -> None:
    plan = replace(PLAN, scale=scale, mean=tuple(mean), std=tuple(std), pad=pad)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=ImagePlan) == plan
    assert contradiction(plan, (), signature()) is None


@pytest.mark.parametrize("place", ["3", "-1", "01", "x", "1.0"])
def test_raw_images_are_places_among_the_inputs(manifest: Manifest, place: str) -> None:
    raw = {place: manifest.golden.raw["2"]}
    with pytest.raises(BadBundleError, match="not places among the golden inputs"):
        encode_manifest(replace(manifest, golden=replace(manifest.golden, raw=raw)))


def test_plans_for_features_and_images_exclude_each_other(manifest: Manifest) -> None:
    plan = FeaturePlan(columns=(RawColumn(name="a", kind="number"),), steps=(), outputs=("a",))
    with pytest.raises(BadBundleError):
        encode_manifest(replace(manifest, features=plan))


def test_a_contradiction_is_no_bundle(manifest: Manifest) -> None:
    with pytest.raises(BadBundleError, match="'top_k' reads 'z', which is no output"):
        encode_manifest(replace(manifest, postprocess=(TopK(output="z"),)))
    with pytest.raises(BadBundleError, match="steps for outputs, but no image plan"):
        encode_manifest(replace(manifest, images=None))


@pytest.mark.parametrize(
    ("image", "batched"),
    [
        ((None, 3, 4, 5), True),
        ((1, 3, 4, 5), False),
        ((2, 3, 4, 5), False),
        ((3, 4, 5), False),
        ((1, 3, None, None), False),
    ],
)
def test_models_that_take_images(image: Shape, batched: bool) -> None:
    assert contradiction(PLAN, EVERY, signature(image, batched=batched)) is None


@pytest.mark.parametrize(
    ("image", "batched"),
    [((None, 3, 4), True), ((3, 4, 5), True), ((None, 4, 5, 3), True), ((None, 1, 4, 5), True), ((5,), False)],
)
def test_models_that_do_not(image: Shape, batched: bool) -> None:
    found = contradiction(PLAN, (), signature(image, batched=batched))
    assert found is not None
    assert "the image plan gives float32 of NCHW [3, 4, 5] an image" in found


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (TopK(output="rows"), "needs one vector an image"),
        (Boxes(decode=Yolo(output="corners")), r"needs [anchors, 5 + classes] an image; 'corners' gives [7, 4]"),
        (Boxes(decode=AnchorFree(output="corners", anchors_last=False)), "needs [anchors, 4 + classes]"),
        (Boxes(decode=AnchorFree(output="one")), "needs [4 + classes, anchors]"),
        (Boxes(decode=Ssd(locations="rows", scores="scores", priors=PRIORS)), "there are 7 priors"),
        (Boxes(decode=Ssd(locations="corners", scores="scores", priors=PRIORS[:-1])), "not whole rows"),
        (Boxes(decode=Ssd(locations="corners", scores="scores", priors=PRIORS, background=3)), "class 3 of 3"),
        (Boxes(decode=Decoded(outputs=("one", "one"))), "one output or three"),
        (Boxes(decode=Decoded(outputs=("corners", "one", "rows"))), "need [n, 4] and [n] and [n] an image"),
    ],
)
def test_steps_that_do_not_fit(step: Any, message: str) -> None:
    found = contradiction(PLAN, (step,), signature())
    assert found is not None
    assert message in found


def test_several_images_at_a_time_need_outputs_that_count_them() -> None:
    sound = signature((2, 3, 4, 5), batched=False)
    odd = replace(sound, outputs=(*sound.outputs, TensorSpec(name="all", dtype="float32", shape=(7, 6))))
    assert contradiction(PLAN, (), odd) == "the model takes 2 images at a time, but 'all' has no axis of that size"
    single = signature((1, 3, 4, 5), batched=False)
    whole = replace(single, outputs=(*single.outputs, TensorSpec(name="all", dtype="float32", shape=(None, 6))))
    assert contradiction(PLAN, (Boxes(decode=Decoded(outputs=("all",))),), whole) is None


def test_one_image_without_an_axis_for_images(manifest: Manifest) -> None:
    """The model gets [3, 4, 5] for each image, and all that it gives is the image's."""
    seen = []

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        seen.append(inputs["x"].shape)
        return {"found": np.array([[0, 0, 2, 2, inputs["x"].max(), 1]], np.float32)}

    steps = (Boxes(decode=Decoded(outputs=("found",))),)
    changed = replace(manifest, signature=signature((3, 4, 5), batched=False), postprocess=steps)
    model = ImageModel(changed, run)
    bright, dark = np.full((8, 10, 3), 255, np.uint8), np.zeros((8, 10, 3), np.uint8)
    first, second = model.detect([bright, dark])
    assert seen == [(3, 4, 5), (3, 4, 5)]
    assert [(one.box.x2, one.box.y2, one.label) for one in first] == [(4, 4, 1)]
    assert second == ()


def test_names_of_classes_come_from_the_signature(manifest: Manifest) -> None:
    named = signature(class_labels=("cat", "dog", "cow"))
    changed = replace(manifest, signature=named, postprocess=(TopK(output="classes", k=1),))
    model = ImageModel(changed, lambda inputs: {"classes": np.tile(np.float32([0, 2, 1]), (len(inputs["x"]), 1))})
    assert [[one.label for one in found] for found in model.classify(np.zeros((2, 4, 5, 3), np.uint8))] == [["dog"]] * 2


def test_without_a_plan(manifest: Manifest) -> None:
    with pytest.raises(BadDataError, match="carries no image plan"):
        ImageModel(replace(manifest, images=None), dict)


def test_sessions_without_images_load_none_of_it() -> None:
    code = "import sys, outrider.runtime.session; print(sorted(name for name in sys.modules if '.images' in name))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(found) == [f"outrider.runtime.images{end}" for end in ("", ".check", ".plan")]
