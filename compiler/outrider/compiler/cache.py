"""What earlier compiles made and found, by content: artifacts, and whole searches.

A key is the SHA-256 of all that the value depends on: model, target, calibration, options, the versions of the tools,
this very code, and for what was measured the processor. So nothing in the cache is ever stale, and anything may be
deleted. A damaged file counts as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from outrider.compiler.backends import BACKENDS, OWN, Built, Candidate, Order, backend
from outrider.compiler.model import OnnxGraph
from outrider.compiler.task import Outcome, Task
from outrider.runtime.bundle import ArtifactEntry, CandidateRecord, GoalRecord
from outrider.runtime.caches import cache_folder
from outrider.runtime.durable import write_file
from outrider.runtime.errors import StorageError

SWITCH = "OUTRIDER_COMPILE_CACHE"  # `off`: compile as if there were none
MOST_BYTES = 4 << 30  # beyond which what was not used for longest is deleted
_DIGEST_BYTES = 32


class _Artifact(msgspec.Struct, frozen=True):
    backend: str
    precision: str
    options: dict[str, str]
    entry: ArtifactEntry
    data: bytes
    tuning: bytes | None = None


class _Search(msgspec.Struct, frozen=True):
    shipped: tuple[_Artifact, ...]
    records: tuple[CandidateRecord, ...]
    goals: tuple[GoalRecord, ...]


class Cache:
    """A folder of files named by their keys; None: nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @classmethod
    def open(cls, wanted: bool = True) -> Cache:
        """The user's, unless it is not wanted, or switched off in the environment."""
        off = not wanted or os.environ.get(SWITCH) == "off"
        return cls(None if off else cache_folder() / "compile")

    def artifact(self, order: Order, candidate: Candidate) -> Built | None:
        """A candidate that was built before."""
        found = self._get(_artifact_key(order, candidate), _Artifact) if self._folder else None
        return None if found is None else Built(candidate, found.data, found.entry, found.tuning)

    def keep_artifact(self, order: Order, built: Built) -> None:
        """Remember what was built."""
        if self._folder:
            self._put(_artifact_key(order, built.candidate), _stored(built))

    def search(self, task: Task) -> Outcome | None:
        """What an earlier search of the same task found, here."""
        if self._folder is None or task.evaluate is not None:
            return None
        found = self._get(_search_key(task), _Search)
        if found is None:
            return None
        shipped = tuple(
            Built(Candidate(one.backend, one.precision, one.options), one.data, one.entry, one.tuning)
            for one in found.shipped
        )
        return Outcome(shipped, found.records, found.goals)

    def keep_search(self, task: Task, outcome: Outcome) -> None:
        """Remember what a search found; not where it was cut short, or judged by code of the caller's."""
        if self._folder is None or task.evaluate is not None or outcome.interrupted or outcome.momentary:
            return
        shipped = tuple(_stored(built) for built in outcome.shipped)
        self._put(_search_key(task), _Search(shipped, outcome.records, outcome.goals))

    def tuning(self) -> dict[str, bytes]:
        """What earlier tuning on this kind of processor found, by backend."""
        if self._folder is None:
            return {}
        found = {name: self._get(_tuning_key(name), bytes) for name in BACKENDS}
        return {name: records for name, records in found.items() if records is not None}

    def keep_tuning(self, backend: str, records: bytes) -> None:
        """Remember records, which hold those that were known before."""
        if self._folder is not None:
            self._put(_tuning_key(backend), records)

    def _get(self, key: str, kind: type[Any]) -> Any:
        assert self._folder is not None
        path = self._folder / key
        with contextlib.suppress(OSError, msgspec.DecodeError):
            data = path.read_bytes()
            if hashlib.sha256(data[_DIGEST_BYTES:]).digest() == data[:_DIGEST_BYTES]:
                os.utime(path)
                return msgspec.msgpack.decode(data[_DIGEST_BYTES:], type=kind)
        return None

    def _put(self, key: str, value: Any) -> None:
        """A cache that cannot be written is as good as none."""
        assert self._folder is not None
        data = msgspec.msgpack.encode(value)
        with contextlib.suppress(OSError, StorageError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_file(self._folder / key, hashlib.sha256(data).digest() + data)
            _prune(self._folder)


def _stored(built: Built) -> _Artifact:
    candidate = built.candidate
    return _Artifact(candidate.backend, candidate.precision, candidate.options, built.entry, built.data, built.tuning)


def _prune(folder: Path) -> None:
    """Delete what was not used for longest, where there is too much."""
    files = [(path.stat(), path) for path in folder.iterdir()]
    total = sum(stat.st_size for stat, _ in files)
    for stat, path in sorted(files, key=lambda one: one[0].st_mtime):
        if total <= MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size


# Keys --------------------------------------------------------------------------------------------------------


def _artifact_key(order: Order, candidate: Candidate) -> str:
    calibrated = candidate.precision not in OWN
    return _digest(
        "artifact",
        _code(),
        tool_versions(backend(candidate.backend).tools),
        *_model_parts(order),
        candidate.backend,
        candidate.precision,
        candidate.options,
        order.calibration_prints if calibrated else [],
        order.threads,
        hashlib.sha256(order.tuning.get(candidate.backend, b"")).hexdigest(),
    )


def _search_key(task: Task) -> str:
    samples, limits = task.samples, task.limits
    return _digest(
        "search",
        _code(),
        [tool_versions(backend(name).tools) for name in BACKENDS],
        *_model_parts(task.order),
        *samples.prints,
        samples.evidence,
        [goal.text for goal in task.goals],
        [limits.backends, limits.precisions, limits.budget_s, limits.threads, limits.tune_s],
        sorted(hashlib.sha256(records).hexdigest() for records in task.tuning.values()) if not limits.tune_s else [],
        [task.host, _processor()] if task.runs_here else [],
    )


def _tuning_key(name: str) -> str:
    return _digest("tuning", name, tool_versions(backend(name).tools), _processor())


def _model_parts(order: Order) -> tuple[Any, ...]:
    model = order.model
    graph = model.payload.sha256 if isinstance(model.payload, OnnxGraph) else ""
    return model.framework, model.framework_version, model.sha256, graph, model.signature, order.target


def _digest(*parts: Any) -> str:
    return hashlib.sha256(b"\0".join(msgspec.json.encode(part, order="deterministic") for part in parts)).hexdigest()


def tool_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those distributions that are installed."""
    found: dict[str, str] = {}
    for name in sorted(names):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@lru_cache(maxsize=1)
def _code() -> str:
    """This release: its files by size and time, so that a change of the code is a change of the key."""
    found = hashlib.sha256()
    for package in ("outrider.compiler", "outrider.runtime", "outrider.targets"):
        spec = find_spec(package)
        assert spec is not None
        for root in spec.submodule_search_locations or ():
            for path in sorted(Path(root).rglob("*")):
                if path.suffix in (".py", ".c", ".h", ".toml"):
                    stat = path.stat()
                    found.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\0".encode())
    return found.hexdigest()


def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next((line for line in lines if line.lower().startswith("model name")), platform.processor())
    return platform.processor()
