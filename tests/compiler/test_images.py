"""Networks with an image plan, from torch to detections: the same pixels in training and on the device."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from outrider.compiler import compile_model
from outrider.compiler.images import read_image_file
from outrider.runtime import load
from outrider.runtime.bundle import file_entry, open_bundle, write_bundle
from outrider.runtime.bundle.npy import decode_npy, encode_npy
from outrider.runtime.cli import main
from outrider.runtime.errors import BadDataError, NotFoundError, UsageError
from outrider.runtime.golden import check_golden
from outrider.runtime.images import AnchorFree, Boxes, Decoded, ImagePlan, Softmax, TopK, prepare

Array = np.ndarray
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAN = ImagePlan(input="x", size=(16, 20), mean=MEAN, std=STD)
STEPS = (Softmax(output="y"), TopK(output="y", k=2, labels=("cat", "dog", "cow")))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.head(functional.relu(self.conv(x)).mean((2, 3))) * 4


class Detector(nn.Module):
    """Finds white: a box around each cell of 4 x 4 pixels, as [4 + classes, anchors]; its scores are brightness."""

    def forward(self, x: Any) -> Any:
        bright = functional.avg_pool2d(x, 4).mean(1).flatten(1)  # [n, 64] of 8 x 8 cells
        places = torch.arange(64)
        centres = torch.stack([places % 8 * 4 + 2, places // 8 * 4 + 2]).float()
        boxes = torch.cat([centres, torch.full((2, 64), 4.0)]).expand(len(x), 4, 64)
        return torch.cat([boxes, bright[:, None], bright[:, None] / 2], 1)


def onnx_file(net: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
    """A file that takes any number of images of this shape."""
    path = folder / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of torch
        torch.onnx.export(
            net.eval(),
            (torch.zeros(2, *shape),),
            path,
            dynamo=True,
            input_names=["x"],
            output_names=["y"],
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    return path


def pictures(count: int, height: int = 30, width: int = 44) -> Array:
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), np.uint8)


def build(model: Path, out: Path, **options: Any) -> Path:
    compile_model(model, out=out, backends=["ort"], precisions=["fp32"], cache=False, budget_s=5, **options)
    return out


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_file(Classifier(), (3, 16, 20), tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def bundle(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "net.orb"
    return build(classifier, out, calibration=pictures(12), images=PLAN, postprocess=STEPS)


def by_torch(image: Array) -> Array:
    """What a training pipeline in torch makes of an image: probabilities [3]."""
    x = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))[None] / 255
    x = functional.interpolate(x, (16, 20), mode="bilinear", align_corners=False, antialias=True)
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        found: Array = Classifier().eval()(x).softmax(1)[0].numpy()
    return found


def test_predicting_images_is_the_torch_pipeline(bundle: Path) -> None:
    images = [pictures(1, 51, 77)[0], pictures(1, 16, 20)[0], pictures(1, 9, 100)[0]]
    with load(bundle) as session:
        for image, result in zip(images, session.images.predict(images), strict=True):
            expected = by_torch(image)
            np.testing.assert_allclose(result.outputs["y"], expected, rtol=1e-4, atol=1e-5)
            assert result.detections is None
            assert result.classes == session.classify(image)
            best = result.classes[0]
            assert (best.class_id, best.label) == (expected.argmax(), ("cat", "dog", "cow")[expected.argmax()])
            alone = session.predict_image(image)
            np.testing.assert_allclose(alone.outputs["y"], result.outputs["y"], rtol=1e-5)
        tensor = session.images.prepare(images[0]).tensor
        np.testing.assert_allclose(session.predict(tensor).shape, (1, 3))
        with pytest.raises(BadDataError, match="no step 'boxes'"):
            session.detect(images[0])
        with pytest.raises(BadDataError, match="float32"):
            session.predict_image(images[0].astype(np.float32))


def test_the_manifest_carries_the_plan(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest.images == PLAN
    assert manifest.postprocess == STEPS


def test_golden_images_are_prepared_again_on_the_device(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    golden = opened.manifest.golden
    assert len(golden.raw) == 8
    with load(bundle) as session:
        assert check_golden(session, repeats=2).passed
    inputs = decode_npy(opened.read(golden.inputs["x"]))
    for place, path in golden.raw.items():
        assert np.array_equal(prepare(PLAN, decode_npy(opened.read(path))).tensor[0], inputs[int(place)])
    files = {path: opened.read(path) for path in opened.files()}
    place, path = next(iter(golden.raw.items()))
    files[path] = encode_npy(255 - decode_npy(files[path]))
    entries = tuple(file_entry(one.path, files[one.path]) for one in opened.manifest.files)
    changed = tmp_path / "changed.orb"
    write_bundle(changed, msgspec.structs.replace(opened.manifest, files=entries), files)
    with load(changed) as session:
        found = check_golden(session, repeats=2)
    assert not found.passed
    assert "y from raw images" in found.detail


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch(classifier: Path, tmp_path: Path, batch: int) -> None:
    out = build(
        classifier,
        tmp_path / "net.orb",
        calibration=pictures(11),
        images=PLAN,
        postprocess=STEPS,
        shapes={"x": (batch, 3, 16, 20)},
    )
    images = list(pictures(6, 21, 33))
    with load(out) as session:
        assert session.signature.inputs[0].shape[0] == batch
        for image, result in zip(images, session.images.predict(images), strict=True):
            np.testing.assert_allclose(result.outputs["y"], by_torch(image), rtol=1e-4, atol=1e-5)
        assert session.manifest.golden.raw
        assert check_golden(session, repeats=2).passed


def test_detections_lie_on_the_source_image(tmp_path: Path) -> None:
    plan = ImagePlan(input="x", size=(32, 32), fit="letterbox", interpolation="area")
    boxes = Boxes(decode=AnchorFree(output="y"), score_threshold=0.9, labels=("white", "grey"))
    model = onnx_file(Detector(), (3, 32, 32), tmp_path)
    out = build(model, tmp_path / "net.orb", images=plan, postprocess=[boxes])
    image = np.zeros((80, 160, 3), np.uint8)
    image[20:40, 100:120] = 255  # a cell of the input is 20 x 20 pixels of the image, which starts two cells down
    with load(out) as session:
        (found,) = session.detect(image)
        assert (found.box.x1, found.box.y1, found.box.x2, found.box.y2) == (100, 20, 120, 40)
        assert (found.label, found.class_id, found.score) == ("white", 0, pytest.approx(1))
        assert session.detect(np.zeros_like(image)) == ()
        with pytest.raises(BadDataError, match="no step 'top_k'"):
            session.classify(image)


def test_a_plan_in_toml_and_calibration_from_a_folder(classifier: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(pictures(3)):
        Image.fromarray(image[: 20 + i]).save(folder / f"{i}.png")
    np.save(folder / "more.npy", pictures(4))
    (folder / "notes.txt").write_text("not a picture")
    plan = tmp_path / "images.toml"
    plan.write_text(
        """
        [image]
        input = "x"
        size = [16, 20]
        mean = [0.485, 0.456, 0.406]
        std = [0.229, 0.224, 0.225]

        [[postprocess]]
        kind = "softmax"
        output = "y"

        [[postprocess]]
        kind = "top_k"
        output = "y"
        k = 2
        labels = ["cat", "dog", "cow"]
        """
    )
    manifest = open_bundle(build(classifier, tmp_path / "net.orb", images=plan, calibration=folder)).manifest
    assert (manifest.images, manifest.postprocess) == (PLAN, STEPS)
    assert manifest.golden.rows == 7
    assert manifest.evidence == "calibration"


def test_the_option_of_the_command(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "images.toml"
    assert main(["compile", str(classifier), "--images", str(plan), "-o", str(tmp_path / "net.orb")]) == 1
    assert "no image plan" in capsys.readouterr().err
    plan.write_text('image = {input = "z", size = [16, 20]}')
    assert main(["compile", str(classifier), "--images", str(plan), "-o", str(tmp_path / "net.orb")]) == 1
    assert "the model takes x" in capsys.readouterr().err


def test_calibration_with_labels_or_as_tensors(classifier: Path, tmp_path: Path) -> None:
    images, labels = pictures(12), np.arange(12) % 3
    np.savez(tmp_path / "rows.npz", images=images, label=labels)
    ready = prepare(PLAN, images).tensor
    rates = []
    for calibration in (tmp_path / "rows.npz", {"x": ready, "label": labels}, {"x": list(images), "label": labels}):
        out = build(
            classifier, tmp_path / "net.orb", calibration=calibration, images=PLAN, goals=["accuracy>=base-0.01"]
        )
        manifest = open_bundle(out).manifest
        rates.append(manifest.goals[0].measured)
        assert bool(manifest.golden.raw) == (not isinstance(calibration, dict) or isinstance(calibration["x"], list))
    assert len(set(rates)) == 1


def test_priors_of_a_plan_are_a_file(tmp_path: Path) -> None:
    priors = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    np.save(tmp_path / "priors.npy", priors)
    text = """
        image = {input = "x", size = [16, 20]}
        [[postprocess]]
        kind = "boxes"
        decode = {kind = "ssd", locations = "l", scores = "s", priors = "PATH"}
    """
    (tmp_path / "plan.toml").write_text(text.replace("PATH", "priors.npy"))
    (step,) = read_image_file(tmp_path / "plan.toml").postprocess
    assert isinstance(step, Boxes)
    assert step.decode.priors == priors.tobytes()
    (tmp_path / "plan.toml").write_text(text.replace("PATH", "none.npy"))
    with pytest.raises(NotFoundError, match=r"none\.npy"):
        read_image_file(tmp_path / "plan.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[image", "not readable TOML"),
        ("", "required field `image`"),
        ('image = {input = "x", size = [0, 4]}', ">= 1"),
        ('image = {input = "x", size = [4, 4], fit = "squeeze"}', "squeeze"),
        ('image = {input = "x", size = [4, 4], colour = "RGB", zoom = 2}', "zoom"),
        ('image = {input = "x", size = [4, 4]}\npostprocess = [{kind = "magic"}]', "magic"),
    ],
)
def test_plans_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(BadDataError, match=message):
        read_image_file(path)


@pytest.mark.parametrize(
    ("plan", "steps", "message"),
    [
        (ImagePlan(input="z", size=(16, 20)), (), "input 'z' alone; the model takes x"),
        (
            ImagePlan(input="x", size=(16, 21)),
            (),
            r"\[3, 16, 21\] an image; the input 'x' takes float32 \[n, 3, 16, 20",
        ),
        (ImagePlan(input="x", size=(16, 20), layout="NHWC"), (), "NHWC"),
        (ImagePlan(input="x", size=(16, 20), dtype="uint8"), (), "gives uint8"),
        (ImagePlan(input="x", size=(16, 20), colour="grey"), (), r"\[1, 16, 20\]"),
        (PLAN, (TopK(output="z"),), "'top_k' reads 'z', which is no output; there are y"),
        (PLAN, (Boxes(decode=AnchorFree(output="y")),), r"'anchor_free' needs \[4 \+ classes, anchors\]"),
        (PLAN, (Boxes(decode=Decoded(outputs=("y",))),), r"need \[n, 6\] an image; there are \[3\]"),
        (ImagePlan(input="x", size=(16, 20), shorter=30), (), "'shorter' is for fit"),
        (ImagePlan(input="x", size=(16, 20), std=(0.0,)), (), "'std' above 0"),
        (ImagePlan(input="x", size=(16, 20), mean=(1, 2)), (), "'mean' has 2 values for 3 channels"),
        (ImagePlan(input="x", size=(16, 0)), (), "the image plan cannot be used"),
        (None, STEPS, "no image plan"),
    ],
)
def test_plans_that_do_not_fit(classifier: Path, tmp_path: Path, plan: Any, steps: Any, message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        build(classifier, tmp_path / "net.orb", images=plan, postprocess=steps)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "a.png").write_bytes(b"no picture"), "not a readable picture"),
        (lambda folder: (folder / "a.npy").write_bytes(b"no array"), "not a readable .npy"),
        (lambda folder: np.save(folder / "a.npy", np.zeros((4, 4, 3), np.float32)), "float32"),
        (lambda folder: None, "holds no images"),
    ],
)
def test_folders_that_cannot_be_used(
    classifier: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(BadDataError, match=message):
        build(classifier, tmp_path / "net.orb", images=PLAN, calibration=folder)


def test_pictures_without_pillow(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").touch()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match="pip install pillow"):
        build(classifier, tmp_path / "net.orb", images=PLAN, calibration=tmp_path)


def test_a_bundle_without_a_plan(classifier: Path, tmp_path: Path) -> None:
    with load(build(classifier, tmp_path / "net.orb")) as session:
        with pytest.raises(BadDataError, match="no image plan"):
            session.predict_image(pictures(1)[0])
        assert session.manifest.images is None


def test_commands_on_a_bundle_of_images(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They take the bundle's plan, so calibration is given as images again."""
    np.savez(tmp_path / "rows.npz", images=pictures(9))
    bundle = build(classifier, tmp_path / "net.orb", calibration=tmp_path / "rows.npz", images=PLAN, postprocess=STEPS)
    given = ["--calibration", str(tmp_path / "rows.npz")]
    assert main(["rebuild", str(bundle), str(classifier), "--check", *given]) == 0
    assert "byte for byte" in capsys.readouterr().out
    assert main(["debug", str(bundle), str(classifier), "--bisect", *given]) == 0
    assert main(["inspect", str(bundle)]) == 0
    assert "images      stretch to 16x20 RGB -> x -> softmax -> top_k" in capsys.readouterr().out
    other = msgspec.structs.replace(PLAN, pad=9)
    second = build(classifier, tmp_path / "other.orb", calibration=tmp_path / "rows.npz", images=other)
    main(["diff", str(bundle), str(second)])
    shown = capsys.readouterr().out
    assert '"pad":9' in shown
    assert "step 2" in shown
