"""Backends: Model -> artifact. One module each, imported only when it is asked.

`BACKENDS` is the table. A new backend is one module with a class of the interface `Backend` and one line here.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from outrider.compiler.model import Model
from outrider.runtime.bundle import ArtifactEntry, file_entry
from outrider.runtime.target import Requirements, Target

_NAMING = frozenset(("kernel", "row", "batch", "isa"))  # options whose value speaks for itself


@dataclass(frozen=True)
class Candidate:
    """One way to build an artifact: a backend, a precision and options that change speed or size.

    `part`: it is good at single rows or at batches only, so it is measured there, and never shipped by itself.
    """

    backend: str
    precision: str = "float32"
    options: dict[str, str] = field(default_factory=dict)
    part: Literal["row", "batch"] | None = None

    @property
    def id(self) -> str:
        """A name that is fit for a path: `native-k2-lanes8`, `native-row-shape-crossover32-x86-64-v4-vbmi`."""
        return "-".join((self.backend, *(self._word(key, value) for key, value in self.options.items())))

    @staticmethod
    def _word(key: str, value: str) -> str:
        return value if key in _NAMING else key.rpartition(".")[2] + value


@dataclass(frozen=True)
class Built:
    """An artifact's bytes with its entry for the manifest."""

    candidate: Candidate
    data: bytes
    entry: ArtifactEntry


# ns a row, by candidate id and batch size. A batch size at which a candidate takes too long is left out.
Times = Mapping[str, Mapping[int, float]]


class Workbench(Protocol):
    """What an exploration works with, on the target itself. Whatever was built and is no mere part can be shipped."""

    def build(self, candidates: Sequence[Candidate]) -> float:
        """Build and verify those that were not yet; comes back with the seconds that the slowest build took."""
        ...

    def times(self) -> Times:
        """Measure all that was built, briefly, against each other."""
        ...


class Backend(Protocol):
    """Builds artifacts of one format."""

    def refuses(self, model: Model, target: Target) -> str | None:
        """Why this backend has nothing for the model on the target, in words; None where it has."""
        ...

    def explore(self, model: Model, target: Target, bench: Workbench) -> None:
        """Build what may be the fastest on the target, which is this machine, among it what can be shipped."""
        ...

    def rule(self, model: Model, target: Target) -> Sequence[Candidate]:
        """What to ship where nothing is measured, in the order in which a device tries them. At least one.

        More than one where machines of the target differ in what they can run; any of them can run the last.
        """
        ...

    def recall(self, model: Model, target: Target, options: Mapping[str, str]) -> Candidate | None:
        """The candidate with these options, which may come from a manifest; None where there is none such."""
        ...

    def faithful(self, model: Model, target: Target) -> Candidate | None:
        """What does as the source does, step by step, however slowly; None where there is no such.

        It is for models on which others do not come close enough, such as where the source's own rounding is large.
        """
        ...

    def build(self, model: Model, candidate: Candidate, target: Target) -> Built:
        """Build one candidate; the same arguments give the same bytes. Raises ToolchainError."""
        ...

    def twin(self, model: Model, candidate: Candidate, host: Target) -> Built | None:
        """The same sources, built for this machine, to verify what is for another architecture.

        None where they are not written for this one. Raises ToolchainError.
        """
        ...


BACKENDS: dict[str, str] = {
    "native": "outrider.compiler.backends.native:NativeBackend",
    "ort": "outrider.compiler.backends.ort:OrtBackend",
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
    )


__all__ = ["BACKENDS", "Backend", "Built", "Candidate", "Times", "Workbench", "artifact_entry", "backend"]
