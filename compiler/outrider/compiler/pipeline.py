"""Model -> Bundle. Read `compile_model` first: each line is a stage, and each stage is a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from outrider.compiler.backends import REDUCED, backend
from outrider.compiler.cache import Cache, tool_versions
from outrider.compiler.frontends import read_model
from outrider.compiler.given import Given, check_plan, unfold
from outrider.compiler.goals import parse_goals
from outrider.compiler.golden import GoldenFiles, make_golden
from outrider.compiler.images import fit_images, with_images
from outrider.compiler.metrics import Evaluate
from outrider.compiler.model import Label, Model
from outrider.compiler.report import Report
from outrider.compiler.samples import Samples, make_samples
from outrider.compiler.search import replay, search
from outrider.compiler.task import Limits, Outcome, Progress, Task
from outrider.compiler.verify import comparable, source_truth
from outrider.runtime import __version__
from outrider.runtime.bundle import (
    SCHEMA_VERSION,
    Bundle,
    FileEntry,
    Manifest,
    SourceModel,
    file_entry,
    open_bundle,
    write_bundle,
)
from outrider.runtime.calls import rows_of_call
from outrider.runtime.errors import GoalUnmetError, UsageError
from outrider.runtime.features.plan import FeaturePlan
from outrider.runtime.images.plan import ImagePlan, Postprocess
from outrider.runtime.target import Target

BASELINE, PROVENANCE, TUNING = "baseline.msgpack", "provenance.json", "tuning/"
UNMET_SUFFIX = ".unmet.orb"


def compile_model(
    model: Any,
    *,
    target: str | Target = "host",
    out: Path | str,
    calibration: Any = None,
    name: str | None = None,
    version: str | None = None,
    baseline: bytes | None = None,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    goals: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    labels: Sequence[Label] | None = None,
    shapes: Mapping[str, Sequence[int | None]] | None = None,
    threads: int = 1,
    budget_s: float = 60.0,
    tune_budget_s: float = 0.0,
    settle: bool = False,
    cache: bool = True,
    features: FeaturePlan | None = None,
    images: ImagePlan | Path | str | None = None,
    postprocess: Sequence[Postprocess] = (),
    trust_pickle: bool = False,
    run_id: str | None = None,
    provenance: bytes | None = None,
    replay_from: Path | str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compile a trained model to a bundle, verified against its source library.

    - `model`: an object of XGBoost, LightGBM, scikit-learn, Treelite or ONNX; a torch module, which is exported with
      `calibration`, or a torch.export program; a path to a model file; or a model directory, which brings its own
      name, version, calibration, baseline, feature plan and provenance.
    - `target`: `host`, a board's name, or a Target.
    - `out`: where the `.orb` goes. It is written whole or not at all. Where no candidate meets the goals, nothing is
      written there: a bundle of the closest one goes beside it, under the ending `.unmet.orb`.
    - `calibration`: real rows, as an array, frame, dict with one array an input, or path to `.npz` or `.parquet`.
      An entry or column `label` holds true labels. Without it, parity is checked on made-up rows.
    - `name`, `version`: of the release; a file's stem and `1` where not given.
    - `baseline`: the training distribution; learned from `calibration` where that is given.
    - `backends`, `precisions` (of `fp32`, `fp16`, `int8`, `mixed`): restrict the search to them. Reduced precisions are
      tried where a goal on quality says what may be lost, or where they are named.
    - `goals`: such as `p99<=15ms`, `size<=5MB`, `rss<=100MB`, `accuracy>=base-0.01`, `l2<=0.02` (see `metrics.py`).
    - `evaluate`: a function of `predict`, inputs and labels, that gives metrics of the caller's own for goals.
    - `labels`: the names of a classifier's classes, in the order of its outputs.
    - `shapes`: sizes to bind, by input, None for those that stay free.
    - `threads`: that a run may use, here and in measurements.
    - `tune_budget_s`: seconds for tuning (TVM), beyond the budget. Without it, and without records of earlier tuning,
      TVM is listed as *untuned, not eligible*.
    - `settle`: Ctrl-C ends the search with the best so far, as `Report.interrupted` says, instead of raising
      KeyboardInterrupt.
    - `cache`: take over what earlier compiles of the same made and measured here (see `cache.py`).
    - `budget_s`: seconds after which no further candidate is built, once there is one that can be shipped.
    - `images`, `postprocess`: how images become the model's input, and what becomes of its outputs; or the path of a
      TOML file that says both (see `images.py`). Calibration may then be images: uint8 [n, h, w, 3], a list of images
      of any sizes, a dict or `.npz` with such under `images`, or a folder.
    - `replay_from`: an earlier bundle of the same model whose choice and measurements are taken over, so that the
      same bytes result.
    - `progress`: called with a few words at each stage.

    Raises BadModelError, BadDataError, UnsupportedError, UsageError, ToolchainError, ParityError; GoalUnmetError, which
    says where the bundle of the closest candidate is.
    """
    tell: Progress = progress or (lambda _: None)
    given = unfold(Given(model, name, version, calibration, baseline, features, run_id, provenance, trust_pickle))
    given = replace(given, class_labels=tuple(labels or given.class_labels), shapes=dict(shapes or {}))
    given = with_images(given, images, postprocess)
    wanted = parse_goals(goals, own=evaluate is not None)
    limits = _limits(backends, precisions, threads, budget_s=budget_s, tune_s=tune_budget_s, settle=settle)
    store = Cache.open(cache)
    earlier = None if replay_from is None else open_bundle(Path(replay_from))
    hardware, host = _targets(target)
    tell("reading the model")
    source = read_model(given.source, given.read_options())
    check_plan(given.features, source)
    given = fit_images(given, source)
    tell("asking the source model")
    samples = comparable(source, make_samples(source, given.calibration, given.raw, given.pictures))
    truth = source_truth(source, samples)
    tuning = store.tuning() if earlier is None else tuning_of(earlier)
    task = Task(source, hardware, host, samples, truth, wanted, tell, evaluate, limits, tuning)
    outcome = search(task, store) if earlier is None else replay(task, store, earlier.manifest)
    tell("writing the bundle")
    golden = make_golden(truth, samples, given.features)
    extras = _extras(given, source, samples, outcome)
    manifest = _manifest(given, task, outcome, golden, extras)
    artifacts = {built.entry.path: built.data for built in outcome.shipped}
    files = {**artifacts, **golden.files, **extras}
    path = unmet_path(out) if outcome.missed else Path(out)
    sha256 = write_bundle(path, manifest, files)
    report = Report(path=path, sha256=sha256, manifest=manifest, interrupted=outcome.interrupted)
    if outcome.missed:
        raise _unmet(report)
    return report


def unmet_path(out: Path | str) -> Path:
    """Where the bundle of a candidate goes that misses the goals: `x.unmet.orb` for `x.orb`."""
    return Path(out).with_suffix(UNMET_SUFFIX)


def _unmet(report: Report) -> GoalUnmetError:
    manifest = report.manifest
    closest = next(record.id for record in manifest.candidates if record.rank == 1)
    found = ", ".join(
        f"{goal.text} (measured {goal.measured:.4g} {goal.unit}".rstrip() + ")"
        for goal in manifest.goals
        if goal.met is False
    )
    return GoalUnmetError(
        f"no candidate meets the goals for {manifest.target}; the closest, {closest}, misses {found}",
        hint=f"it is kept, marked as one that misses goals: {report.path}",
        kept=str(report.path),
        table=report.table(),
    )


def _limits(
    backends: Sequence[str] | None,
    precisions: Sequence[str] | None,
    threads: int,
    *,
    budget_s: float,
    tune_s: float,
    settle: bool,
) -> Limits:
    known = ("fp32", *REDUCED)
    unknown = [precision for precision in precisions or () if precision not in known]
    if unknown:
        raise UsageError(f"there is no precision {unknown[0]!r}", hint=f"there are {', '.join(known)}")
    if threads < 1:
        raise UsageError(f"{threads} threads cannot run anything", hint="give 1 or more")
    return Limits(
        backends=None if backends is None else tuple(backends),
        precisions=None if precisions is None else tuple(precisions),
        budget_s=budget_s,
        threads=threads,
        tune_s=tune_s,
        settle=settle,
    )


def _targets(target: str | Target) -> tuple[Target, Target]:
    """The target, and this machine."""
    from outrider.targets import get_target

    host = get_target("host")
    return (get_target(target) if isinstance(target, str) else target), host


def tuning_of(bundle: Bundle) -> dict[str, bytes]:
    """The tuning records that a bundle's artifacts were built by, by backend."""
    paths = [file.path for file in bundle.manifest.files if file.path.startswith(TUNING)]
    return {path.removeprefix(TUNING): bundle.read(path) for path in paths}


def _extras(given: Given, model: Model, samples: Samples, outcome: Outcome) -> dict[str, bytes]:
    """Baseline, provenance and tuning records, as files."""
    baseline = given.baseline or _learn_baseline(model, samples)
    tuning = {f"{TUNING}{built.candidate.backend}": built.tuning for built in outcome.shipped}
    found = {BASELINE: baseline, PROVENANCE: given.provenance, **tuning}
    return {path: data for path, data in found.items() if data is not None}


def _learn_baseline(model: Model, samples: Samples) -> bytes | None:
    """A baseline of the calibration rows, without scores: whether the model was fitted on them is not known."""
    spec = model.signature.inputs[0]
    if not samples.real or len(model.signature.inputs) > 1 or spec.dtype != "float32" or len(spec.shape) != 2:
        return None
    from outrider.runtime.profile import encode_baseline, learn_baseline

    if not model.signature.batched and rows_of_call(model.signature) is None:
        return None
    rows = samples.inputs[spec.name].reshape(-1, samples.inputs[spec.name].shape[-1])
    names = model.signature.feature_names or tuple(f"f{i}" for i in range(rows.shape[1]))
    return encode_baseline(learn_baseline(np.ascontiguousarray(rows), names))


def _manifest(given: Given, task: Task, outcome: Outcome, golden: GoldenFiles, extras: dict[str, bytes]) -> Manifest:
    assert given.name is not None
    assert given.version is not None
    model = task.model
    stored = {**golden.files, **extras}
    files: tuple[FileEntry, ...] = tuple(file_entry(path, data) for path, data in sorted(stored.items()))
    return Manifest(
        schema=SCHEMA_VERSION,
        name=given.name,
        version=given.version,
        target=task.target.name,
        signature=model.signature,
        artifacts=tuple(built.entry for built in outcome.shipped),
        candidates=outcome.records,
        golden=golden.record,
        source=SourceModel(
            framework=model.framework,
            framework_version=model.framework_version,
            sha256=model.sha256,
            description=model.description,
        ),
        files=files,
        evidence=task.samples.evidence,
        goals=outcome.goals,
        features=given.features,
        images=given.images,
        postprocess=given.postprocess,
        baseline=BASELINE if BASELINE in extras else None,
        provenance=PROVENANCE if PROVENANCE in extras else None,
        run_id=given.run_id,
        tools=_tools({built.candidate.backend for built in outcome.shipped}),
    )


def _tools(backends: Set[str]) -> dict[str, str]:
    """The versions of what made the artifacts."""
    names = {tool for name in backends for tool in backend(name).tools}
    return {"outrider": __version__, **tool_versions(names)}
