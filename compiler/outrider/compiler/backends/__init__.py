"""Backends: Model -> artifact. One module each, imported only when it is asked.

`BACKENDS` is the table. A new backend is one module with a class of the interface `Backend` and one line here.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

from outrider.compiler.fingerprint import fingerprint
from outrider.compiler.model import Array, Model, no_reference
from outrider.runtime.bundle import ArtifactEntry, file_entry
from outrider.runtime.target import Requirements, Target

OWN: tuple[str, ...] = ("fp32", "fp64")  # precisions of the source model itself
REDUCED: tuple[str, ...] = ("fp16", "int8", "mixed")  # precisions that change outputs on purpose

_NAMING = frozenset(("kernel", "row", "batch", "isa", "method", "preset"))  # options whose value speaks for itself


@dataclass(frozen=True)
class Order:
    """What a backend is asked for.

    `calibration`: calls of the model, as a session takes them, of the caller's own data where `real`. `precisions`:
    those that may be tried; `fp32` stands for the source model's own. `threads`: that a run on the device may use.
    `on_host`: the target is this machine. `backends`: those that the caller named. `tuning`: what tuning found, by
    backend; a bench adds to it. `tune_s`: seconds that a backend may spend on tuning.
    """

    model: Model
    target: Target
    calibration: tuple[Mapping[str, Array], ...] = ()
    real: bool = False
    precisions: frozenset[str] = frozenset(("fp32",))
    threads: int = 1
    on_host: bool = False
    backends: tuple[str, ...] | None = None
    tuning: dict[str, bytes] = field(default_factory=dict)
    tune_s: float = 0.0

    def allows(self, precision: str) -> bool:
        """Whether a candidate of this precision may be tried."""
        return ("fp32" if precision in OWN else precision) in self.precisions

    @cached_property
    def calibration_prints(self) -> list[list[str]]:
        """What tells this calibration from another."""
        return [fingerprint(call) for call in self.calibration]

    def portable(self) -> Order:
        """The same without the source library, to be sent to another process."""
        return replace(self, model=replace(self.model, reference=no_reference))


@dataclass(frozen=True)
class Candidate:
    """One way to build an artifact: a backend, a precision and options that change speed or size.

    `part`: it is good at single rows or at batches only, so it is measured there, and never shipped by itself.
    """

    backend: str
    precision: str = "fp32"
    options: dict[str, str] = field(default_factory=dict)
    part: Literal["row", "batch"] | None = None

    @property
    def id(self) -> str:
        """A name that is fit for a path: `native-row-shape-crossover32-x86-64-v4-vbmi`, `ort-int8-entropy`."""
        reduced = (self.precision,) if self.precision in REDUCED else ()
        return "-".join((self.backend, *reduced, *(self._word(key, value) for key, value in self.options.items())))

    @staticmethod
    def _word(key: str, value: str) -> str:
        return value if key in _NAMING else key.rpartition(".")[2] + value


@dataclass(frozen=True)
class Built:
    """An artifact's bytes with its entry for the manifest, and the tuning records that it was built by."""

    candidate: Candidate
    data: bytes
    entry: ArtifactEntry
    tuning: bytes | None = None


# ns a row, by candidate id and batch size. A batch size at which a candidate takes too long is left out.
Times = Mapping[str, Mapping[int, float]]


class Workbench(Protocol):
    """What an exploration works with, on the target itself. Whatever was built and is no mere part can be shipped."""

    def build(self, candidates: Sequence[Candidate]) -> float:
        """Build and verify those that were not yet; comes back with the seconds that the slowest build took.

        What fails is recorded with its reason, and what the search has no more time for is left out.
        """
        ...

    def times(self) -> Times:
        """Measure all that was built, briefly, against each other."""
        ...

    def tune(self, backend: str, function: str, *, seconds: float) -> None:
        """Let `module:function` tune by the order, in a process of its own, and keep the records that it gives."""
        ...

    def misses(self, candidate: Candidate) -> tuple[str, ...] | None:
        """The goals on quality that a candidate misses; None for one that was not built."""
        ...


class Backend(Protocol):
    """Builds artifacts of one format.

    `isolated`: it calls a foreign compiler, which is let loose in a process of its own only. `precisions`: those that
    it can build, of `OWN` and `REDUCED`. `tools`: the distributions whose versions decide what comes out.
    """

    isolated: bool
    precisions: tuple[str, ...]
    tools: tuple[str, ...]

    def refuses(self, order: Order) -> str | None:
        """Why this backend has nothing for the model on the target, in words; None where it has."""
        ...

    def explore(self, order: Order, bench: Workbench) -> None:
        """Build what may be the fastest on the target, which is this machine, among it what can be shipped."""
        ...

    def rule(self, order: Order) -> Sequence[Candidate]:
        """What to ship where nothing is measured, in the order in which a device tries them. At least one.

        More than one where machines of the target differ in what they can run; any of them can run the last.
        """
        ...

    def recall(self, order: Order, precision: str, options: Mapping[str, str]) -> Candidate | None:
        """The candidate of these, which may come from a manifest; None where there is none such."""
        ...

    def faithful(self, order: Order) -> Candidate | None:
        """What does as the source does, step by step, however slowly; None where there is no such.

        It is for models on which others do not come close enough, such as where the source's own rounding is large.
        """
        ...

    def build(self, order: Order, candidate: Candidate) -> Built:
        """Build one candidate; the same arguments give the same bytes.

        Raises ToolchainError, and UnsupportedError naming an operator that the backend does not know.
        """
        ...

    def twin(self, order: Order, candidate: Candidate, host: Target) -> Built | None:
        """The same sources, built for this machine, to verify what is for another architecture.

        None where they are not written for this one. Raises ToolchainError.
        """
        ...


BACKENDS: dict[str, str] = {
    "native": "outrider.compiler.backends.native:NativeBackend",
    "ort": "outrider.compiler.backends.ort:OrtBackend",
    "openvino": "outrider.compiler.backends.openvino.backend:OpenVinoBackend",
    "ncnn": "outrider.compiler.backends.ncnn.backend:NcnnBackend",
    "tvm": "outrider.compiler.backends.tvm.backend:TvmBackend",
}


def backend(name: str) -> Backend:
    """The backend of that name."""
    made: Backend = pkgutil.resolve_name(BACKENDS[name])()
    return made


def artifact_entry(
    model: Model,
    candidate: Candidate,
    data: bytes,
    *,
    file: str,
    kind: str,
    package: str | None,
    triple: str | None,
    needs: Requirements,
    rows: int | None = None,
) -> ArtifactEntry:
    """The manifest's entry for an artifact of the format `kind`, under its path in the bundle."""
    stored = file_entry(f"artifacts/{candidate.id}/{file}", data)
    return ArtifactEntry(
        path=stored.path,
        size=stored.size,
        sha256=stored.sha256,
        format=kind,
        abi=1,
        engine=kind,
        package=package,
        triple=triple,
        needs=needs,
        inputs=tuple(spec.name for spec in model.signature.inputs),
        outputs=model.computed,
        candidate=candidate.id,
        rows=rows,
    )


def row_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The shapes of the inputs: of one row where the model is batched, else as the signature says."""
    return {spec.name: tuple(size or 1 for size in spec.shape) for spec in model.signature.inputs}


def build_elsewhere(reference: str, order: Order, candidate: Candidate) -> Built:
    """Build by the backend of that line of the table: what an isolated backend's process is asked to do."""
    built: Built = pkgutil.resolve_name(reference)().build(order, candidate)
    return built


__all__ = [
    "BACKENDS",
    "OWN",
    "REDUCED",
    "Backend",
    "Built",
    "Candidate",
    "Order",
    "Times",
    "Workbench",
    "artifact_entry",
    "backend",
    "build_elsewhere",
    "row_shapes",
]
