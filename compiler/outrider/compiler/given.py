"""What the caller gave, with a model directory's parts in their places."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from outrider.compiler.frontends import ReadOptions
from outrider.compiler.model import Array, Label, Model
from outrider.compiler.modeldir import is_model_dir, read_model_dir
from outrider.compiler.samples import examples, load_calibration
from outrider.runtime.errors import BadDataError, UsageError
from outrider.runtime.features.plan import FeaturePlan
from outrider.runtime.images.plan import ImagePlan, Postprocess

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Given:
    """The arguments of a compile. `source` is an object or a path; `raw` are calibration's rows as raw columns.

    `pictures` are its images as they were given, each uint8 [h, w, 3] or [h, w].
    """

    source: Any
    name: str | None
    version: str | None
    calibration: Any
    baseline: bytes | None
    features: FeaturePlan | None
    run_id: str | None
    provenance: bytes | None
    trust_pickle: bool
    raw: dict[str, Array] = field(default_factory=dict)
    class_labels: tuple[Label, ...] = ()
    feature_names: tuple[str, ...] = ()
    shapes: dict[str, Sequence[int | None]] = field(default_factory=dict)
    images: ImagePlan | None = None
    postprocess: tuple[Postprocess, ...] = ()
    pictures: tuple[Array, ...] = ()

    def read_options(self) -> ReadOptions:
        """What a frontend is told beside the model."""
        return ReadOptions(
            class_labels=self.class_labels,
            feature_names=self.feature_names,
            trust_pickle=self.trust_pickle,
            examples=examples(self.calibration) or _noise(self.images),
            shapes=self.shapes,
        )


def unfold(given: Given) -> Given:
    """Put a model directory's parts where the caller gave nothing, then check names and baseline.

    Raises UsageError for a name that a bundle cannot have, BadBundleError for a baseline that does not decode.
    """
    if isinstance(given.source, str | Path):
        path = Path(given.source)
        given = _with_directory(given, path) if is_model_dir(path) else replace(given, name=given.name or path.stem)
    if given.features is not None and not given.feature_names:
        given = replace(given, feature_names=given.features.outputs)
    if given.baseline is not None:
        from outrider.runtime.profile import decode_baseline

        decode_baseline(given.baseline)
    name, version = _checked("name", given.name), _checked("version", given.version or "1")
    return replace(given, name=name, version=version, calibration=load_calibration(given.calibration))


def check_plan(plan: FeaturePlan | None, model: Model) -> None:
    """A plan must give exactly the model's columns, by name where the model has names. Raises BadDataError."""
    if plan is None:
        return
    signature = model.signature
    if len(signature.inputs) != 1 or signature.inputs[0].shape[1:] != (len(plan.outputs),):
        raise BadDataError(f"the feature plan gives {len(plan.outputs)} columns, which the model does not take")
    if signature.feature_names and signature.feature_names != plan.outputs:
        raise BadDataError("the feature plan's columns are not the model's feature names, in their order")


def _noise(plan: ImagePlan | None) -> dict[str | None, Array]:
    """A few tensors of the sizes that the plan gives, where there is no calibration to show them."""
    if plan is None:
        return {}
    values = np.random.default_rng(0).random((3, *plan.shape)) * 100
    return {plan.input: values.astype(plan.dtype)}


def _with_directory(given: Given, path: Path) -> Given:
    folder = read_model_dir(path)
    card = folder.card
    own_rows = given.calibration is None
    return replace(
        given,
        source=folder.model,
        name=given.name or card.name,
        version=given.version or card.version,
        calibration=(folder.calibration or None) if own_rows else given.calibration,
        raw=folder.raw if own_rows else {},
        baseline=given.baseline or folder.baseline,
        features=given.features or folder.features,
        run_id=given.run_id or (card.run.id if card.run else None),
        provenance=given.provenance or folder.provenance,
        class_labels=card.class_labels,
        feature_names=card.feature_names,
    )


def _checked(what: str, value: str | None) -> str:
    if value is None:
        raise UsageError(f"a {what} is needed for the bundle", hint=f"give {what}=…")
    if not _NAME.fullmatch(value):
        raise UsageError(
            f"{value!r} cannot be the {what} of a bundle", hint="letters, digits, dot, dash and underscore can"
        )
    return value
