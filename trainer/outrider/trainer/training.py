"""Training: from a recipe to a model directory. `train` is the table of contents."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from outrider.compiler.modeldir import ModelCard, RunInfo, write_model_dir
from outrider.runtime.errors import BadDataError
from outrider.runtime.features import FeaturePlan, compute, fit_plan
from outrider.runtime.features.columns import parse_time
from outrider.runtime.profile import encode_baseline, learn_baseline
from outrider.trainer.data.table import Table
from outrider.trainer.experiment import (
    DataInfo,
    Run,
    RunMetrics,
    RunStore,
    code_version,
    new_run_id,
    recorded,
)
from outrider.trainer.metrics import evaluate
from outrider.trainer.models.base import ModelKind, Sample, Trained
from outrider.trainer.progress import Progress, silent
from outrider.trainer.recipe import LoadedRecipe, Recipe, load_recipe, seconds
from outrider.trainer.split import Parts, Positions, rows_until, split, weights
from outrider.trainer.tables import make_model, make_source


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where the model directory is, and the Run that made it."""

    model_dir: Path
    run: Run


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """`provenance.json`: where a model came from."""

    run_id: str
    recipe: str
    recipe_sha256: str
    source: dict[str, Any]
    data_digest: str
    data: DataInfo
    code_version: str
    parameters: dict[str, str]
    rounds: int
    metrics: RunMetrics


def train(
    recipe: Path | str,
    out: Path | str,
    until: float | str | None = None,
    *,
    runs: Path | str | None = None,
    progress: Progress = silent,
) -> TrainResult:
    """Train a model from a recipe and write its model directory to `out`, which is replaced whole.

    `recipe`: a path, or the name of a bundled recipe. `until`: only rows older than this are used, in seconds since
    the epoch or as ISO 8601 text, UTC; None: all there are. `runs`: the SQLite file that the Run is recorded in;
    None: `runs.db` beside `out`. Raises BadRecipeError, BadDataError or UnavailableError; the Run then says so.
    """
    loaded, out = load_recipe(recipe), Path(out)
    store = RunStore(out.parent / "runs.db" if runs is None else runs)
    with recorded(store, _new_run(loaded)) as recorder:
        table = load_rows(loaded, until, progress)
        parts = split(table, loaded.recipe)
        recorder.note(data=_describe(table, parts, loaded.recipe, until))
        rows = fit_features(table, parts, loaded.recipe, progress)
        model = make_model(loaded.recipe.model, loaded.path.name)
        trained = fit_model(model, rows, parts, loaded.recipe, progress)
        metrics = measure(trained, rows, parts)
        recorder.note(metrics=metrics, rounds=trained.rounds)
        outcome = Outcome(model=model, trained=trained, rows=rows, parts=parts, metrics=metrics)
        baseline = make_baseline(outcome, loaded.recipe, progress)
        write(out, loaded, recorder.run, outcome, baseline)
        recorder.note(model_dir=str(out))
    return TrainResult(model_dir=out, run=recorder.run)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A table sorted by time with what was made of it: the fitted plan, features float32 [n, f], labels int64 [n]."""

    table: Table
    times: NDArray[np.float64]
    plan: FeaturePlan
    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def sample(self, part: Positions, half_life: str | None = None) -> Sample:
        """Some rows to fit on."""
        return Sample(
            features=self.features[part],
            labels=self.labels[part],
            weights=weights(self.times[part], half_life),
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trained model, and the rows that it was trained and measured on."""

    model: ModelKind
    trained: Trained
    rows: Rows
    parts: Parts
    metrics: RunMetrics


def load_rows(loaded: LoadedRecipe, until: float | str | None, progress: Progress) -> Table:
    """Read the recipe's source: the rows older than the cutoff, in order of time."""
    cutoff = parse_time(until, what="the cutoff") if isinstance(until, str) else until
    source = make_source(loaded.recipe.source, loaded.path.name)
    table = rows_until(source.read(loaded.recipe.wanted(), loaded.folder, progress), loaded.recipe, cutoff)
    progress("read", f"{len(table)} rows")
    return table


def fit_features(table: Table, parts: Parts, recipe: Recipe, progress: Progress) -> Rows:
    """Learn what the feature steps need to know, and compute the features of all rows.

    Steps that learn from labels see the history alone, the others see the training rows too.
    """
    labels = class_indices(table, recipe)
    plan = _fit(recipe, table, parts, labels)
    progress("features", f"{len(plan.outputs)} features of {len(table)} rows")
    raw = table.select([column.name for column in plan.columns])
    return Rows(table=table, times=table[recipe.split.time], plan=plan, features=compute(plan, raw), labels=labels)


def class_indices(table: Table, recipe: Recipe) -> NDArray[np.int64]:
    """The label of each row as the index of its class, int64 [n]. Raises BadDataError for another value."""
    values = table[recipe.label.column]
    codes = {value: code for code, value in enumerate(recipe.label.values)}
    indices = [codes.get(value, -1) for value in values.tolist()]
    if -1 in indices:
        bad = values[indices.index(-1)]
        raise BadDataError(
            f"the label column {recipe.label.column!r} holds {bad!r}", hint=f"expected {', '.join(recipe.label.values)}"
        )
    return np.array(indices, dtype=np.int64)


def fit_model(model: ModelKind, rows: Rows, parts: Parts, recipe: Recipe, progress: Progress) -> Trained:
    """Train on the training rows, stopping early by the validation rows."""
    present = set(np.unique(rows.labels[parts.train]).tolist())
    absent = [value for code, value in enumerate(recipe.label.values) if code not in present]
    if absent:
        raise BadDataError(f"no training row is labelled {absent[0]!r}", hint="is the cutoff too early?")
    return model.train(
        rows.sample(parts.train, recipe.split.half_life),
        rows.sample(parts.valid),
        rows.plan.outputs,
        len(recipe.label.values),
        progress,
    )


def measure(trained: Trained, rows: Rows, parts: Parts) -> RunMetrics:
    """Figures on the rows that the model was not fitted on, against the training rows' class shares."""
    shares = np.bincount(rows.labels[parts.train], minlength=int(rows.labels.max()) + 1) / len(rows.labels[parts.train])
    valid, test = (
        evaluate(trained.scores(rows.features[part]), rows.labels[part], shares) for part in (parts.valid, parts.test)
    )
    return RunMetrics(valid=valid, test=test)


def make_baseline(outcome: Outcome, recipe: Recipe, progress: Progress) -> bytes:
    """The distributions that live rows are compared with: of recent features, and of scores on held-out rows."""
    rows, parts = outcome.rows, outcome.parts
    first = int(parts.train[0])
    if recipe.baseline.last is not None:
        first = max(first, int(np.searchsorted(rows.times, rows.times[-1] - seconds(recipe.baseline.last))))
    scores = outcome.trained.scores(rows.features[parts.held_out])
    progress("baseline", f"{len(rows.features) - first} rows in {recipe.baseline.blocks} blocks of time")
    return encode_baseline(
        learn_baseline(
            np.ascontiguousarray(rows.features[first:]),
            rows.plan.outputs,
            scores if scores.ndim == 1 else scores.max(axis=1),
            blocks=recipe.baseline.blocks,
        )
    )


def write(out: Path, loaded: LoadedRecipe, run: Run, outcome: Outcome, baseline: bytes) -> None:
    """Write the model directory, with the newest rows as calibration sample."""
    assert run.data is not None, "train notes the data before it writes"
    recipe, rows, parts = loaded.recipe, outcome.rows, outcome.parts
    chosen = slice(max(int(parts.train[0]), len(rows.table) - recipe.calibration.rows), len(rows.table))
    provenance = Provenance(
        run_id=run.id,
        recipe=run.recipe,
        recipe_sha256=run.recipe_sha256,
        source=recipe.source,
        data_digest=run.data.digest,
        data=run.data,
        code_version=run.code_version,
        parameters=run.parameters,
        rounds=outcome.trained.rounds,
        metrics=outcome.metrics,
    )
    card = ModelCard(
        file=outcome.model.file_name(),
        framework=outcome.model.framework(),
        name=recipe.recipe.name,
        version=run.id,
        class_labels=recipe.label.class_labels(),
        feature_names=rows.plan.outputs,
        run=RunInfo(
            id=run.id,
            recipe=run.recipe,
            data_digest=run.data.digest,
            code_version=run.code_version,
            finished=time.time(),
        ),
    )
    write_model_dir(
        out,
        card,
        model=outcome.trained.serialise(),
        calibration={"features": rows.features[chosen], "label": rows.labels[chosen]},
        raw=storable(rows.table.take(chosen).select([column.name for column in rows.plan.columns])),
        baseline=baseline,
        provenance=msgspec.json.format(msgspec.json.encode(provenance), indent=2),
        features=rows.plan,
    )


def storable(raw: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Raw columns without Python objects: text of a fixed width, in which a missing string is empty."""
    return {
        name: np.array(["" if cell is None else cell for cell in values.tolist()], dtype=np.str_)
        if values.dtype == object
        else values
        for name, values in raw.items()
    }


def _fit(recipe: Recipe, table: Table, parts: Parts, labels: NDArray[np.int64]) -> FeaturePlan:
    declared = recipe.plan()
    raw = table.select([column.name for column in declared.columns])
    positive = (labels == len(recipe.label.values) - 1).astype(np.float64)

    def fitted(part: Positions) -> FeaturePlan:
        return fit_plan(declared, {name: values[part] for name, values in raw.items()}, positive[part])

    if len(parts.history) == 0:
        return fitted(parts.train)
    from outrider.runtime.features.transform import make_steps

    by_history, by_all = fitted(parts.history), fitted(np.concatenate([parts.history, parts.train]))
    steps = tuple(
        early if step.uses_labels() else late
        for step, early, late in zip(make_steps(declared), by_history.steps, by_all.steps, strict=True)
    )
    return msgspec.structs.replace(declared, steps=steps)


def _new_run(loaded: LoadedRecipe) -> Run:
    return Run(
        id=new_run_id(),
        recipe=loaded.recipe.recipe.name,
        recipe_sha256=loaded.sha256,
        state="running",
        started=time.time(),
        code_version=code_version(),
        parameters={
            f"{table}.{key}": str(value)
            for table in ("source", "split", "model", "baseline", "calibration")
            for key, value in msgspec.to_builtins(getattr(loaded.recipe, table)).items()
        },
    )


def _describe(table: Table, parts: Parts, recipe: Recipe, until: float | str | None) -> DataInfo:
    times = table[recipe.split.time]
    return DataInfo(
        digest=table.digest(),
        rows=len(table),
        first=float(times[0]),
        last=float(times[-1]),
        until=parse_time(until) if isinstance(until, str) else until,
        parts=parts.sizes(),
    )
