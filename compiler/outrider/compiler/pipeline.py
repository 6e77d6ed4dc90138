"""Model -> Bundle. Read `compile_model` first: each line is a stage, and each stage is a module."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from outrider.compiler.frontends import read_model
from outrider.compiler.given import Given, check_plan, unfold
from outrider.compiler.goals import parse_goals
from outrider.compiler.golden import GoldenFiles, make_golden
from outrider.compiler.model import Model
from outrider.compiler.report import Report
from outrider.compiler.samples import Samples, make_samples
from outrider.compiler.search import Outcome, replay, search
from outrider.compiler.task import Progress, Task
from outrider.compiler.verify import source_truth
from outrider.runtime import __version__
from outrider.runtime.bundle import (
    SCHEMA_VERSION,
    FileEntry,
    Manifest,
    SourceModel,
    file_entry,
    open_bundle,
    write_bundle,
)
from outrider.runtime.features.plan import FeaturePlan
from outrider.runtime.target import Target

BASELINE, PROVENANCE = "baseline.msgpack", "provenance.json"
_TOOLS = {"native": ("treelite", "ziglang"), "ort": ("onnx", "onnxruntime")}


def compile_model(
    model: Any,
    *,
    target: str | Target = "host",
    out: Path | str,
    calibration: Any = None,
    name: str | None = None,
    version: str | None = None,
    baseline: bytes | None = None,
    goals: Sequence[str] = (),
    features: FeaturePlan | None = None,
    trust_pickle: bool = False,
    run_id: str | None = None,
    provenance: bytes | None = None,
    replay_from: Path | str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compile a trained model to a bundle, verified against its source library.

    - `model`: an object of XGBoost, LightGBM, scikit-learn, Treelite or ONNX; a path to a model file; or a model
      directory, which brings its own name, version, calibration, baseline, feature plan and provenance.
    - `target`: `host`, a board's name, or a Target.
    - `out`: where the `.orb` goes. It is written whole or not at all.
    - `calibration`: real rows, as an array, frame, dict with one array an input, or path to `.npz` or `.parquet`.
      An entry or column `label` holds true labels. Without it, parity is checked on made-up rows.
    - `name`, `version`: of the release; a file's stem and `1` where not given.
    - `baseline`: the training distribution; learned from `calibration` where that is given.
    - `goals`: such as `p99<=15ms`, `size<=5MB`, `accuracy>=base-0.01`.
    - `replay_from`: an earlier bundle of the same model whose choice and measurements are taken over, so that the
      same bytes result.
    - `progress`: called with a few words at each stage.

    Raises BadModelError, BadDataError, UnsupportedError, UsageError, ToolchainError, ParityError, GoalUnmetError.
    """
    tell: Progress = progress or (lambda _: None)
    given = unfold(Given(model, name, version, calibration, baseline, features, run_id, provenance, trust_pickle))
    wanted = parse_goals(goals)
    hardware, host = _targets(target)
    tell("reading the model")
    source = read_model(given.source, given.read_options())
    check_plan(given.features, source)
    samples = make_samples(source, given.calibration, given.raw)
    tell("asking the source model")
    truth = source_truth(source, samples)
    task = Task(source, hardware, host, samples, truth, wanted, tell)
    outcome = search(task) if replay_from is None else replay(task, open_bundle(Path(replay_from)).manifest)
    tell("writing the bundle")
    golden = make_golden(source, samples, given.features)
    extras = _extras(given, source, samples)
    manifest = _manifest(given, task, outcome, golden, extras)
    artifacts = {built.entry.path: built.data for built in outcome.shipped}
    files = {**artifacts, **golden.files, **extras}
    sha256 = write_bundle(Path(out), manifest, files)
    return Report(path=Path(out), sha256=sha256, manifest=manifest)


def _targets(target: str | Target) -> tuple[Target, Target]:
    """The target, and this machine."""
    from outrider.targets import get_target

    host = get_target("host")
    return (get_target(target) if isinstance(target, str) else target), host


def _extras(given: Given, model: Model, samples: Samples) -> dict[str, bytes]:
    """Baseline and provenance, as files."""
    baseline = given.baseline or _learn_baseline(model, samples)
    found = {BASELINE: baseline, PROVENANCE: given.provenance}
    return {path: data for path, data in found.items() if data is not None}


def _learn_baseline(model: Model, samples: Samples) -> bytes | None:
    """A baseline of the calibration rows, without scores: whether the model was fitted on them is not known."""
    spec = model.signature.inputs[0]
    if not samples.real or len(model.signature.inputs) > 1 or spec.dtype != "float32" or len(spec.shape) != 2:
        return None
    from outrider.runtime.profile import encode_baseline, learn_baseline

    rows = samples.inputs[spec.name]
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
        baseline=BASELINE if BASELINE in extras else None,
        provenance=PROVENANCE if PROVENANCE in extras else None,
        run_id=given.run_id,
        tools=_tools(outcome.shipped[0].candidate.backend),
    )


def _tools(backend: str) -> dict[str, str]:
    """The versions of what made the artifact."""
    return {"outrider": __version__, **{tool: metadata.version(tool) for tool in _TOOLS.get(backend, ())}}
