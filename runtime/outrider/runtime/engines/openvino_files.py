"""The artifact format `openvino`: a model in OpenVINO's intermediate representation (IR) as one file, and its import.

The file is a zip archive in the canonical form of a bundle (stored entries, fixed times), of three entries:

| entry | holds |
| --- | --- |
| `openvino_model.bin` | the constants, 48 bytes into the file, which aligns them where it is in memory |
| `openvino_model.xml` | the graph |
| `settings.json` | `Settings`: what decides the numbers and is not in the graph |
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from outrider.runtime.bundle.archive import pack, unpack
from outrider.runtime.errors import BadBundleError, EngineMissingError

WEIGHTS, GRAPH, SETTINGS = "openvino_model.bin", "openvino_model.xml", "settings.json"

Arithmetic = Literal["f32", "bf16", "f16"]

_TELEMETRY = "openvino_telemetry"
_importing = threading.RLock()


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the graph is to be computed: `arithmetic` is that of what is not quantised, where the processor has it."""

    arithmetic: Arithmetic = "f32"


@dataclass(frozen=True)
class OpenVinoFiles:
    """What an artifact holds. `weights` is a view into the artifact's bytes where it was read from such."""

    graph: str
    weights: memoryview
    settings: Settings


def pack_files(files: OpenVinoFiles) -> bytes:
    """The artifact's bytes; the same files give the same bytes."""
    entries = {
        WEIGHTS: bytes(files.weights),
        GRAPH: files.graph.encode("utf-8"),
        SETTINGS: msgspec.json.encode(files.settings),
    }
    return b"".join(pack(entries))


def unpack_files(data: bytes) -> OpenVinoFiles:
    """What the artifact holds, with its checksums checked; copies no weights. Raises BadBundleError."""
    found = unpack(data, checksums=True)
    if set(found) != {WEIGHTS, GRAPH, SETTINGS}:
        raise BadBundleError(f"not an OpenVINO artifact: it holds {sorted(found)}")
    try:
        settings = msgspec.json.decode(found[SETTINGS], type=Settings)
        graph = str(found[GRAPH], "utf-8")
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise BadBundleError(f"the OpenVINO artifact cannot be read: {e}") from e
    return OpenVinoFiles(graph, found[WEIGHTS], settings)


def import_openvino() -> Any:
    """The module `openvino`, imported without its telemetry. Raises EngineMissingError where it cannot be imported."""
    with without_telemetry():
        try:
            import openvino
        except (ImportError, OSError, RuntimeError) as e:  # the package may be there, and its library not load here
            raise EngineMissingError(
                f"OpenVINO artifacts need the package openvino, which cannot be imported here: {e}",
                hint="pip install openvino",
                reason="engine",
            ) from e
    return openvino


def openvino_core() -> Any:
    """OpenVINO's Core, one for the process: each would load the plugins anew. Raises EngineMissingError."""
    return _core(import_openvino())


@functools.cache
def _core(openvino: Any) -> Any:
    return openvino.Core()


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Let what is imported meanwhile find no openvino_telemetry, and so fall back to sending nothing.

    OpenVINO's converter reports each import over the network and writes to the home directory, unless a file there
    says no; NNCF does likewise. Both know an installation without that package.
    """
    with _importing:
        absent = object()
        before = sys.modules.get(_TELEMETRY, absent)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what the import system reads as "not to be found"
        try:
            yield
        finally:
            if before is absent:
                del sys.modules[_TELEMETRY]
            else:
                sys.modules[_TELEMETRY] = before  # type: ignore[assignment]
