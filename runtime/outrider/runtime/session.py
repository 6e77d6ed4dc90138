"""A session: a bundle opened, admitted, loaded into an engine, and called with checked arrays.

`load` reads as the whole story; `Session.run` and `Session.predict` are what it gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.admission import admissible
from outrider.runtime.bundle import Bundle, open_bundle
from outrider.runtime.bundle.manifest import ArtifactEntry, Manifest, Signature
from outrider.runtime.bundle.signed import check_signature
from outrider.runtime.engines import available, open_engine
from outrider.runtime.engines.base import Array, Engine
from outrider.runtime.errors import (
    BadDataError,
    EngineFault,
    EngineMissingError,
    TargetMismatchError,
)
from outrider.runtime.messages import ArtifactNeed
from outrider.runtime.target import Refusal, Target
from outrider.runtime.tensors import check_inputs, derive_label, frame_to_matrix, is_frame
from outrider.runtime.trust import TrustStore

_FLOAT32 = np.dtype(np.float32)


class Tap(Protocol):
    """Sees every prediction of a session, after it was made; `outrider.runtime.profile.ProfileTap` counts them."""

    def observe(self, features: NDArray[np.float32], outputs: Mapping[str, Array]) -> None:
        """`features` is the model's input, float32 [n, f]; `outputs` are the run's, by name. Must not change either."""


class Attempt:
    """One artifact of a bundle, and why it was not used; `refusal` None: it is the one in use."""

    def __init__(self, artifact: ArtifactEntry, refusal: Refusal | str | None) -> None:
        self.artifact = artifact
        self.refusal = refusal


def load(
    path: Path | str,
    trust: TrustStore | Path | str | None = None,
    tap: Tap | None = None,
    target: Target | None = None,
) -> Session:
    """Open a bundle and make it ready to run on this machine.

    Digests are always checked; with `trust`, so is the detached signature beside the file (`x.orb.dsse`). The
    artifacts are tried in the order of their ranks. `target` None: this machine. `tap` sees every prediction.

    Raises BadBundleError, TrustError, TargetMismatchError, EngineMissingError or EngineFault.
    """
    bundle = open_bundle(path)
    if trust is not None:
        check_signature(bundle, trust if isinstance(trust, TrustStore) else TrustStore.load(trust))
    if target is None:
        from outrider.runtime.probe import host_target

        target = host_target()
    engine, attempts = _open_best(bundle, target)
    return Session(bundle, engine, attempts, tap)


class Session:
    """A loaded bundle. Made by `load`; use it as a context manager, or call `close`.

    Calls from several threads are safe; native artifacts run them one after the other (see `NativeEngine`).
    """

    def __init__(self, bundle: Bundle, engine: Engine, attempts: list[Attempt], tap: Tap | None) -> None:
        self.bundle = bundle
        self.manifest: Manifest = bundle.manifest
        self.signature: Signature = bundle.manifest.signature
        self._engine = engine
        self._attempts = attempts
        self._tap = tap
        self._row_shape: tuple[int, ...] | None = None
        self._set_up_matrix()

    def _set_up_matrix(self) -> None:
        """Find out whether the model takes one float32 matrix, and the engine's shorter way for one row of it."""
        inputs = self.signature.inputs
        self._matrix = len(inputs) == 1 and inputs[0].dtype == "float32" and len(inputs[0].shape) == 2
        if self._tap is not None and not self._matrix:
            raise BadDataError("a tap needs a model of one float32 matrix")
        self._row = None
        if self._matrix and self._tap is None:
            self._row = self._engine.row_function(self.signature.predict)
            self._row_shape = (1, inputs[0].shape[1] or 0)

    def predict(self, x: Any) -> Array:
        """The main output for a model of one input: `x` is an array, or a DataFrame with the features by name.

        What comes out is what the source model's own predict gives (see the signature's `predict`). An array of
        float32 and shape (1, n) takes the shortest way. A DataFrame of raw columns goes through the bundle's
        feature plan. Raises BadDataError for anything that does not fit, and for a model of several inputs.
        """
        if self._row is not None and type(x) is np.ndarray and x.dtype is _FLOAT32 and x.shape == self._row_shape:
            return self._row(x)
        return self._run_checked(self._one_input(x))[self.signature.predict]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name, in the order of the signature.

        The keys are either the model's inputs (`{"features": X}`) or, where the bundle carries a feature plan, all
        of its raw columns (`{"amt": …, "merchant": …}`), never both. Raises BadDataError.
        """
        if not isinstance(inputs, Mapping):
            raise BadDataError(f"expected arrays by name, got {type(inputs).__name__}")
        plan = self.manifest.features
        if plan is not None and _is_raw(inputs, {column.name for column in plan.columns}, self._input_names()):
            return self._run_checked({self._input_names()[0]: self.features(inputs)})
        return self._run_checked(check_inputs(inputs, self.signature))

    def features(self, raw: Mapping[str, Array]) -> NDArray[np.float32]:
        """The model's input, float32 [n, f], from raw columns, by the bundle's feature plan. Raises BadDataError."""
        from outrider.runtime.features import compute

        plan = self.manifest.features
        if plan is None:
            raise BadDataError("the bundle carries no feature plan, so it takes no raw columns")
        return compute(plan, raw)

    def explain(self) -> str:
        """Which artifact runs, how, and why others do not, as text."""
        manifest = self.manifest
        lines = [f"{manifest.name} {manifest.version} for {manifest.target}, {self.bundle.size} B"]
        for attempt in self._attempts:
            artifact = attempt.artifact
            state = f"not used: {attempt.refusal}" if attempt.refusal else f"in use, called by {self._engine.binding}"
            lines.append(f"  {artifact.candidate}: {artifact.format}, {artifact.size} B, {state}")
        return "\n".join(lines)

    @property
    def artifact(self) -> ArtifactEntry:
        """The artifact in use."""
        return self._attempts[-1].artifact

    def close(self) -> None:
        """Unload the artifact. The session cannot be used afterwards."""
        self._engine.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _input_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.signature.inputs)

    def _one_input(self, x: Any) -> dict[str, Array]:
        """`x` under the name of the model's only input, checked."""
        names = self._input_names()
        if len(names) != 1:
            raise BadDataError(f"the model has {len(names)} inputs: {', '.join(names)}", hint="use session.run")
        if is_frame(x):
            plan = self.manifest.features
            raw = tuple(column.name for column in plan.columns) if plan else ()
            columns = set(map(str, x.columns))
            if raw and set(raw) <= columns and not set(self.signature.feature_names) <= columns:
                return {names[0]: self.features({name: np.asarray(x[name]) for name in raw})}
            x = frame_to_matrix(x, self.signature.feature_names)
        return check_inputs({names[0]: x}, self.signature)

    def _run_checked(self, inputs: dict[str, Array]) -> dict[str, Array]:
        computed = self._engine.run(inputs)
        outputs = {
            spec.name: computed[spec.name] if spec.name in computed else derive_label(computed, self.signature)
            for spec in self.signature.outputs
        }
        if self._tap is not None:
            self._tap.observe(inputs[self.signature.inputs[0].name], outputs)
        return outputs


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


def _open_best(bundle: Bundle, target: Target) -> tuple[Engine, list[Attempt]]:
    """The first artifact, by rank, that this machine can run; the last attempt is the one in use."""
    ranks = {candidate.id: candidate.rank or 0 for candidate in bundle.manifest.candidates}
    attempts: list[Attempt] = []
    fault: EngineFault | None = None
    for artifact in sorted(bundle.manifest.artifacts, key=lambda artifact: ranks[artifact.candidate]):
        need = ArtifactNeed(format=artifact.format, abi=artifact.abi, package=artifact.package, needs=artifact.needs)
        refusal = admissible(need, target, engines=available)
        if refusal is None:
            try:
                engine = open_engine(artifact, bundle.read(artifact.path), bundle.manifest.signature)
            except EngineFault as e:
                fault = e
                attempts.append(Attempt(artifact, str(e)))
                continue
            return engine, [*attempts, Attempt(artifact, None)]
        attempts.append(Attempt(artifact, refusal))
    if fault is not None:
        raise fault
    raise _mismatch(bundle, target, attempts)


def _mismatch(bundle: Bundle, target: Target, attempts: list[Attempt]) -> TargetMismatchError:
    reasons = "; ".join(f"{attempt.artifact.candidate}: {attempt.refusal}" for attempt in attempts)
    message = f"{bundle.path.name} is for {bundle.manifest.target} and cannot run on {target.name}: {reasons}"
    first = attempts[0].refusal
    code = first.code if isinstance(first, Refusal) else "engine"
    packages = [attempt.artifact.package for attempt in attempts if attempt.artifact.package]
    if all(isinstance(attempt.refusal, Refusal) and attempt.refusal.code == "engine" for attempt in attempts):
        hint = f"pip install {packages[0]}" if packages else None
        return EngineMissingError(message, hint=hint, reason="engine")
    return TargetMismatchError(message, hint=f"compile it with --target {target.name}", reason=code)
