"""The manifest: what a bundle holds, what it was made from and what was measured.

It is `manifest.json` inside the `.orb`. Unknown fields are refused, so a change of meaning needs a new
`SCHEMA_VERSION`. The JSON Schema is in `docs/schema/manifest.json`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from outrider.runtime.features.plan import FeaturePlan
from outrider.runtime.images.plan import ImagePlan, Postprocess
from outrider.runtime.target import Requirements

SCHEMA_VERSION = 1

Dtype = Literal[
    "float32",
    "float64",
    "float16",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
    "string",
]
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$(?!\n)")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Size = Annotated[int, Meta(ge=0)]
Evidence = Literal["calibration", "thresholds", "random"]

_PROBABILITIES = "probabilities"


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all manifest records: immutable, named fields only, nothing unknown."""


class TensorSpec(_Record, frozen=True, kw_only=True):
    """One named input or output. `None` in `shape` is a free dimension."""

    name: str
    dtype: Dtype
    shape: tuple[int | None, ...]


class Signature(_Record, frozen=True, kw_only=True):
    """What the model takes and gives.

    `batched`: axis 0 of every tensor counts rows, any number of them, none of which bears on another. A model that is
    not takes whole tensors, such as one image of any size, or the batch of a fixed size that it was exported with.
    `predict` names the output that `Session.predict` returns. `class_labels` are in the order of the
    probability columns. The session derives what no artifact computes: one vector of integers or text is the class
    label by them, and `probabilities_0`, `probabilities_1`, … are the columns of `probabilities` that belong to the
    first target, the second, …
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    predict: str
    feature_names: tuple[str, ...] = ()
    class_labels: tuple[int | str, ...] = ()
    batched: bool = True

    def target_columns(self) -> dict[str, slice]:
        """The outputs `probabilities_0`, `probabilities_1`, … and the columns of `probabilities` that they are."""
        specs = {spec.name: spec for spec in self.outputs}
        found: dict[str, slice] = {}
        start = 0
        while (spec := specs.get(f"{_PROBABILITIES}_{len(found)}")) is not None and len(spec.shape) == 2:
            stop = start + (spec.shape[1] or 0)
            found[spec.name] = slice(start, stop)
            start = stop
        whole = specs.get(_PROBABILITIES)
        return found if whole is not None and whole.shape == (None, start) else {}


class FileEntry(_Record, frozen=True, kw_only=True):
    """One file inside the bundle, by size in bytes and SHA-256."""

    path: str
    size: Size
    sha256: Sha256


class ArtifactEntry(_Record, frozen=True, kw_only=True):
    """One compiled file and what it takes to run it.

    `format` selects the engine (`outrider.runtime.engines.ENGINES`), `abi` is the version of that format.
    `inputs` and `outputs` name tensors of the signature in the order of the artifact's ABI.
    `package` is the distribution that the engine needs on the device, or None. `rows`: how many rows the artifact of a
    batched model takes in a call; None: any number.
    """

    path: str
    size: Size
    sha256: Sha256
    format: str
    abi: int
    engine: str
    package: str | None
    triple: str | None
    needs: Requirements
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    candidate: str
    rows: Annotated[int, Meta(ge=1)] | None = None


class Measurement(_Record, frozen=True, kw_only=True):
    """CPU time of one candidate at one batch size, nanoseconds a row, over `repeats` runs."""

    batch: int
    threads: int
    ns_per_row_min: float
    ns_per_row_median: float
    repeats: int


class Parity(_Record, frozen=True, kw_only=True):
    """How far an artifact is from the source model.

    `rows`: rows, or calls of a model that is not batched. It passed where every |error| <= atol + rtol * |value| +
    of_max * m, with m the largest |value| of the same output, and where of values that are no floats no larger share
    than `differing` differs. `l2_error` is the largest relative L2 error of an output.
    """

    rows: int
    evidence: Evidence
    max_abs_error: float
    max_rel_error: float
    atol: float
    rtol: float
    passed: bool
    of_max: float = 0.0
    differing: float = 0.0
    l2_error: float | None = None


class CandidateRecord(_Record, frozen=True, kw_only=True):
    """One (backend, precision, options) that the compile tried, and what became of it.

    `rank` is 1 for the one the device tries first. `reason` says why, in words.
    """

    id: str
    backend: str
    precision: str
    options: dict[str, str]
    outcome: Literal["chosen", "shipped", "rejected", "failed", "not eligible"]
    reason: str
    rank: int | None = None
    size: Size | None = None
    measured: tuple[Measurement, ...] = ()
    parity: Parity | None = None


class GoalRecord(_Record, frozen=True, kw_only=True):
    """A stated goal (`p99<=15ms`) and what was measured against it on the chosen candidate."""

    text: str
    metric: str
    relation: Literal["<=", ">="]
    bound: float
    unit: str
    measured: float | None
    met: bool | None


class Golden(_Record, frozen=True, kw_only=True):
    """Golden vectors: real inputs with the source model's outputs, each a `.npy` file.

    `inputs` and `outputs` map tensor names to paths; `raw` maps raw columns, where the bundle carries a
    feature plan, or, where it carries an image plan, places among all images of `inputs` ("0", "17") to the image as
    it was, uint8 [h, w, 3]. Axis 0 of each other array counts `rows`: those of a batched model, or whole calls of
    another. What a probe allows is `Parity`'s of the candidate in use, and `atol + rtol * |value|` where it has none.
    """

    rows: int
    evidence: Evidence
    inputs: dict[str, str]
    outputs: dict[str, str]
    raw: dict[str, str]
    atol: float
    rtol: float


class SourceModel(_Record, frozen=True, kw_only=True):
    """The trained model that was compiled: framework (`xgboost`), version and the SHA-256 of its serialised form."""

    framework: str
    framework_version: str
    sha256: Sha256
    description: str


class Manifest(_Record, frozen=True, kw_only=True):
    """The root record of `manifest.json`.

    `features` says how raw columns become the model's input, `images` how an image does, `postprocess` what a session
    makes of an image's outputs, step by step.
    """

    schema: int
    name: Name
    version: Name
    target: str
    signature: Signature
    artifacts: tuple[ArtifactEntry, ...]
    candidates: tuple[CandidateRecord, ...]
    golden: Golden
    source: SourceModel
    files: tuple[FileEntry, ...]
    evidence: Evidence
    goals: tuple[GoalRecord, ...] = ()
    features: FeaturePlan | None = None
    images: ImagePlan | None = None
    postprocess: tuple[Postprocess, ...] = ()
    baseline: str | None = None
    provenance: str | None = None
    run_id: str | None = None
    tools: dict[str, str] = {}

    def ranked_candidates(self) -> list[CandidateRecord]:
        """The candidates that were shipped, in the order in which a device tries them."""
        ranks = [(record.rank, record) for record in self.candidates if record.rank is not None]
        return [record for _, record in sorted(ranks, key=lambda pair: pair[0])]

    def ranked_artifacts(self) -> list[ArtifactEntry]:
        """The artifacts in the order in which a device tries them."""
        ranks = {candidate.id: candidate.rank or 0 for candidate in self.candidates}
        return sorted(self.artifacts, key=lambda artifact: ranks[artifact.candidate])
