"""A session: a bundle opened, admitted, loaded into an engine, and called with checked arrays.

`load` reads as the whole story; `Session.run` and `Session.predict` are what it gives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.admission import admissible, need_of
from outrider.runtime.bundle import Bundle, open_bundle
from outrider.runtime.bundle.manifest import ArtifactEntry, CandidateRecord, Manifest, Signature
from outrider.runtime.bundle.signed import check_signature
from outrider.runtime.checked import CheckedModel, Tap
from outrider.runtime.engines import available, open_engine
from outrider.runtime.engines.base import Array, Engine
from outrider.runtime.errors import EngineFault, EngineMissingError, TargetMismatchError
from outrider.runtime.target import Refusal, Target
from outrider.runtime.trust import TrustStore

if TYPE_CHECKING:
    from outrider.runtime.images.results import Classification, Detection, ImageResult
    from outrider.runtime.images.run import ImageModel

log = logging.getLogger(__name__)

_LEFT_OUT = "it is not among those to be tried"


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
    threads: int = 1,
    *,
    prefer: str | None = None,
    only: Collection[str] | None = None,
) -> Session:
    """Open a bundle and make it ready to run on this machine.

    Digests are always checked; with `trust`, so is the detached signature beside the file (`x.orb.dsse`). The
    artifacts are tried in the order of their ranks; first that of the candidate `prefer`, where it is given, and none
    but those of the candidates `only`. `target` None: this machine. `tap` sees every prediction. Large batches are
    split over up to `threads` threads.

    Raises BadBundleError, TrustError, TargetMismatchError, EngineMissingError, EngineFault or UsageError.
    """
    bundle = open_bundle(path)
    if trust is not None:
        check_signature(bundle, trust if isinstance(trust, TrustStore) else TrustStore.load(trust))
    if target is None:
        from outrider.runtime.probe import host_target

        target = host_target()
    engine, attempts = _open_best(bundle, target, threads, prefer, only)
    return Session(bundle, engine, attempts, tap)


def load_each(
    bundle: Bundle, target: Target | None = None, threads: int = 1, keep: ExitStack | None = None
) -> Iterator[tuple[ArtifactEntry, Session | Refusal | EngineFault]]:
    """Every artifact of an opened bundle by rank, each with a session of its own or why it does not run here.

    One session is open at a time: it is closed when the next artifact is asked for; with `keep`, all stay open until
    that is closed. `target` None: this machine.
    """
    if target is None:
        from outrider.runtime.probe import host_target

        target = host_target()
    for artifact in bundle.manifest.ranked_artifacts():
        refusal = admissible(need_of(artifact), target, engines=available)
        if refusal is not None:
            yield artifact, refusal
            continue
        try:
            engine = open_engine(artifact, bundle.read(artifact.path), bundle.manifest.signature, threads)
        except EngineFault as e:
            yield artifact, e
            continue
        session = Session(bundle, engine, [Attempt(artifact, None)], None)
        if keep is not None:
            yield artifact, keep.enter_context(session)
            continue
        with session:
            yield artifact, session


class Session:
    """A loaded bundle. Made by `load`; use it as a context manager, or call `close`.

    `predict(x)` gives the main output for a model of one input: `x` is an array, or a DataFrame with the features by
    name. What comes out is what the source model's own predict gives (see the signature's `predict`). A DataFrame of
    raw columns goes through the bundle's feature plan. Raises BadDataError for anything that does not fit, and for a
    model of several inputs. It is an attribute, and where the artifact brings a function of its own for matrices, it
    is that function.

    Where `takes_doubles` says so, as for all compiled tree ensembles, an array may be float64 too, and a DataFrame may
    hold any numbers and booleans: such rows are decided as the source model decides float64 rows. Arrays of integers
    are refused.

    Where the bundle carries an image plan, `predict_image`, `detect` and `classify` take images as they are.

    Calls from several threads are safe; the engine says whether they run side by side.
    """

    predict: Callable[[Any], Array]

    def __init__(self, bundle: Bundle, engine: Engine, attempts: list[Attempt], tap: Tap | None) -> None:
        self.bundle = bundle
        self.manifest: Manifest = bundle.manifest
        self.signature: Signature = bundle.manifest.signature
        self._engine = engine
        self._attempts = attempts
        self._checked = CheckedModel(bundle.manifest, engine, tap)
        own = engine.matrix_function(self.signature.predict, self._checked.predict) if tap is None else None
        self.predict = own or self._checked.predict

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name, in the order of the signature.

        The keys are either the model's inputs (`{"features": X}`) or, where the bundle carries a feature plan, all
        of its raw columns (`{"amt": …, "merchant": …}`), never both. What `predict` says of float64 holds here.
        Raises BadDataError.
        """
        return self._checked.run(inputs)

    def features(self, raw: Mapping[str, Array]) -> NDArray[np.float32]:
        """The model's input, float32 [n, f], from raw columns, by the bundle's feature plan. Raises BadDataError."""
        return self._checked.features(raw)

    def predict_image(self, image: Any) -> ImageResult:
        """What the bundle's steps make of one image, uint8 [h, w, 3] RGB or [h, w] grey. Raises BadDataError."""
        return self.images.predict([image])[0]

    def detect(self, image: Any) -> tuple[Detection, ...]:
        """The objects on one image, best score first, boxes in its own pixels. Raises BadDataError."""
        return self.images.detect([image])[0]

    def classify(self, image: Any) -> tuple[Classification, ...]:
        """The classes of one image, best first. Raises BadDataError."""
        return self.images.classify([image])[0]

    @cached_property
    def images(self) -> ImageModel:
        """The same for many images at once: `session.images.predict(images)` and its like give one result an image.

        Raises BadDataError where the bundle carries no image plan.
        """
        from outrider.runtime.images.run import ImageModel

        return ImageModel(self.manifest, self._checked.run)

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

    @property
    def candidate(self) -> CandidateRecord:
        """The record of the artifact in use: how it was built, and how close to the source model it was found to be."""
        used = self.artifact.candidate
        return next(record for record in self.manifest.candidates if record.id == used)

    @property
    def takes_doubles(self) -> bool:
        """Whether the input, float32 in the signature, may be float64."""
        return self._engine.doubles

    def close(self) -> None:
        """Unload the artifact. The session cannot be used afterwards."""
        self._engine.close()
        self.predict = self._checked.predict

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_best(
    bundle: Bundle, target: Target, threads: int, prefer: str | None, only: Collection[str] | None
) -> tuple[Engine, list[Attempt]]:
    """The first artifact, in the order to try them, that this machine can run; the last attempt is the one in use."""
    ordered = sorted(bundle.manifest.ranked_artifacts(), key=lambda one: one.candidate != prefer)
    left_out = [Attempt(one, _LEFT_OUT) for one in ordered if only is not None and one.candidate not in only]
    attempts: list[Attempt] = []
    fault: EngineFault | EngineMissingError | None = None
    for artifact in ordered:
        if only is not None and artifact.candidate not in only:
            continue
        refusal: Refusal | str | None = admissible(need_of(artifact), target, engines=available)
        if refusal is None:
            try:
                engine = open_engine(artifact, bundle.read(artifact.path), bundle.manifest.signature, threads)
            except (EngineFault, EngineMissingError) as e:
                fault, refusal = e, str(e)
            else:
                _log_other(prefer, artifact, attempts)
                return engine, [*left_out, *attempts, Attempt(artifact, None)]
        attempts.append(Attempt(artifact, refusal))
    if fault is not None:
        raise fault
    raise _mismatch(bundle, target, attempts)


def _log_other(prefer: str | None, used: ArtifactEntry, attempts: list[Attempt]) -> None:
    """Say why it is not the preferred one."""
    if prefer not in (None, used.candidate):
        why = [str(attempt.refusal) for attempt in attempts if attempt.artifact.candidate == prefer]
        log.warning("%s is used, not %s: %s", used.candidate, prefer, "; ".join(why) or _LEFT_OUT)


def _mismatch(bundle: Bundle, target: Target, attempts: list[Attempt]) -> TargetMismatchError:
    reasons = "; ".join(f"{attempt.artifact.candidate}: {attempt.refusal}" for attempt in attempts)
    reasons = reasons or "no artifact is left to try"
    message = f"{bundle.path.name} is for {bundle.manifest.target} and cannot run on {target.name}: {reasons}"
    first = attempts[0].refusal if attempts else None
    code = first.code if isinstance(first, Refusal) else "engine"
    packages = [attempt.artifact.package for attempt in attempts if attempt.artifact.package]
    if attempts and all(
        isinstance(attempt.refusal, Refusal) and attempt.refusal.code == "engine" for attempt in attempts
    ):
        hint = f"pip install {packages[0]}" if packages else None
        return EngineMissingError(message, hint=hint, reason="engine")
    return TargetMismatchError(message, hint=f"compile it with --target {target.name}", reason=code)
