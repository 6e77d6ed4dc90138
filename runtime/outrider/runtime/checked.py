"""A model behind checks: arrays, frames and raw columns in, every output out; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.bundle.manifest import Manifest, Signature
from outrider.runtime.engines.base import Array, Engine, numpy_dtype
from outrider.runtime.errors import BadDataError
from outrider.runtime.tensors import check_inputs, derive, frame_to_matrix, is_frame


class Tap(Protocol):
    """Sees every prediction of a session, after it was made; `outrider.runtime.profile.ProfileTap` counts them."""

    def observe(self, features: NDArray[np.float32], outputs: Mapping[str, Array]) -> None:
        """`features` is the model's input, float32 [n, f], rounded where it came as float64; `outputs` are the run's,
        by name. Must not change either."""


class CheckedModel:
    """An engine that is only called with what the signature says. What it does is told at `Session`."""

    def __init__(self, manifest: Manifest, engine: Engine, tap: Tap | None) -> None:
        self._manifest, self._signature = manifest, manifest.signature
        self._engine, self._tap = engine, tap
        inputs = self._signature.inputs
        matrix = len(inputs) == 1 and inputs[0].dtype == "float32" and len(inputs[0].shape) == 2
        if tap is not None and not matrix:
            raise BadDataError("a tap needs a model of one float32 matrix")
        self._plain = _PlainInput(self._signature, manifest) if len(inputs) == 1 and tap is None else None

    def predict(self, x: Any) -> Array:
        """The main output for `x`, an array or a DataFrame. Raises BadDataError."""
        plain = self._plain
        if plain is not None and plain.fits(x):
            return self._engine.run({plain.name: x})[self._signature.predict]
        return self._run(self._one_input(x))[self._signature.predict]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name, from the model's inputs or from raw columns. Raises BadDataError."""
        if not isinstance(inputs, Mapping):
            raise BadDataError(f"expected arrays by name, got {type(inputs).__name__}")
        plan = self._manifest.features
        if plan is not None and _is_raw(inputs, {column.name for column in plan.columns}, self._input_names()):
            return self._run({self._input_names()[0]: self.features(inputs)})
        return self._run(self._check(inputs))

    def features(self, raw: Mapping[str, Array]) -> NDArray[np.float32]:
        """The model's input, float32 [n, f], from raw columns, by the bundle's feature plan. Raises BadDataError."""
        from outrider.runtime.features import compute

        plan = self._manifest.features
        if plan is None:
            raise BadDataError("the bundle carries no feature plan, so it takes no raw columns")
        return compute(plan, raw)

    def _input_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self._signature.inputs)

    def _one_input(self, x: Any) -> dict[str, Array]:
        """`x` under the name of the model's only input, checked."""
        names = self._input_names()
        if len(names) != 1:
            raise BadDataError(f"the model has {len(names)} inputs: {', '.join(names)}", hint="use session.run")
        if is_frame(x):
            plan = self._manifest.features
            raw = tuple(column.name for column in plan.columns) if plan else ()
            columns = set(map(str, x.columns))
            if raw and set(raw) <= columns and not set(self._signature.feature_names) <= columns:
                return {names[0]: self.features({name: np.asarray(x[name]) for name in raw})}
            x = frame_to_matrix(x, self._signature.feature_names, doubles=self._engine.doubles)
        return self._check({names[0]: x})

    def _check(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        return check_inputs(inputs, self._signature, doubles=self._engine.doubles)

    def _run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        computed = self._engine.run(inputs)
        outputs = {
            spec.name: computed[spec.name] if spec.name in computed else derive(spec.name, computed, self._signature)
            for spec in self._signature.outputs
        }
        if self._tap is not None:
            self._tap.observe(_as_single(inputs[self._signature.inputs[0].name]), outputs)
        return outputs


class _PlainInput:
    """The only input of a model: whether an array is just what an engine takes, found out in no time."""

    def __init__(self, signature: Signature, manifest: Manifest) -> None:
        (spec,) = signature.inputs
        self.name = spec.name
        self._dtype, self._free = numpy_dtype(spec.dtype), int(signature.batched)
        fixed = spec.shape[self._free :]
        computed = {name for artifact in manifest.artifacts for name in artifact.outputs}
        self._usable = None not in fixed and signature.predict in computed and not self._dtype.hasobject
        self._axes, self._shape = len(spec.shape), fixed

    def fits(self, x: Any) -> bool:
        """Whether `x` needs neither a check nor a change."""
        if not self._usable or type(x) is not np.ndarray or x.dtype != self._dtype or x.ndim != self._axes:
            return False
        flags = x.flags
        return bool(x.shape[self._free :] == self._shape and flags.c_contiguous and flags.aligned)


def _as_single(features: Array) -> NDArray[np.float32]:
    """The features as float32; what is beyond its range becomes infinite."""
    with np.errstate(over="ignore"):
        return features.astype(np.float32, copy=False)


def _is_raw(inputs: Mapping[str, Array], columns: set[str], names: tuple[str, ...]) -> bool:
    """Whether these are raw columns rather than the model's inputs. Raises BadDataError for a mixture."""
    given = set(inputs)
    if given == columns:
        return True
    if given == set(names):
        return False
    if given & columns and not given & set(names):
        missing, unknown = sorted(columns - given), sorted(given - columns)
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has unknown {', '.join(unknown)}"] if unknown else []
        raise BadDataError(f"the raw data {' and '.join(parts)}", hint=f"columns: {', '.join(sorted(columns))}")
    raise BadDataError(
        f"got {', '.join(sorted(map(str, given))) or 'nothing'}; expected either {', '.join(names)} or the raw columns",
        hint=f"raw columns: {', '.join(sorted(columns))}",
    )
