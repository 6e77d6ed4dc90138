"""The model directory: what training leaves behind and compiling starts from.

```
model.toml         what the model is, and the run that made it
model.ubj          the model itself, under the name that model.toml gives
features.json      the feature plan, where the device takes raw columns
calibration.npz    real rows as the model takes them (`features`, float32 [n, f]); `label` [n] where known,
                   as class labels or as their places
raw.npz            the same rows as raw columns
baseline.msgpack   the distribution of the training data
provenance.json    where everything came from
```
"""

from __future__ import annotations

import io
import json
import secrets
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from outrider.runtime.durable import fsync_folder, write_file
from outrider.runtime.errors import BadModelError, NotFoundError, StorageError
from outrider.runtime.features.plan import FeaturePlan

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Array = NDArray[Any]

CARD, FEATURES, CALIBRATION = "model.toml", "features.json", "calibration.npz"
RAW, BASELINE, PROVENANCE = "raw.npz", "baseline.msgpack", "provenance.json"
_FIXED = frozenset({CARD, FEATURES, CALIBRATION, RAW, BASELINE, PROVENANCE})


class RunInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The run that trained the model. `data_digest` is the SHA-256 of its data, `finished` seconds since the epoch."""

    id: str
    recipe: str = ""
    data_digest: str = ""
    code_version: str = ""
    finished: float = 0.0


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`model.toml`: the model's file and framework, its name and version, and the run that made it.

    `class_labels` are in the order of the model's classes; `feature_names` in the order of its columns.
    """

    file: str
    framework: str
    name: str
    version: str
    class_labels: tuple[int | str, ...] = ()
    feature_names: tuple[str, ...] = ()
    run: RunInfo | None = None


class ModelDir(msgspec.Struct, frozen=True, kw_only=True):
    """A model directory that was read. `calibration` and `raw` hold one array a name, equal in length."""

    folder: Path
    card: ModelCard
    model: Path
    features: FeaturePlan | None
    calibration: dict[str, Array]
    raw: dict[str, Array]
    baseline: bytes | None
    provenance: bytes | None


def is_model_dir(path: Path) -> bool:
    """Whether the path is a folder with a `model.toml`."""
    return (path / CARD).is_file()


def write_model_dir(
    folder: Path | str,
    card: ModelCard,
    *,
    model: bytes,
    calibration: Mapping[str, Array],
    raw: Mapping[str, Array],
    baseline: bytes | None,
    provenance: bytes | None,
    features: FeaturePlan | None = None,
) -> Path:
    """Write a model directory, which replaces an older one whole; returns its path.

    Raises StorageError where the disk fails, BadModelError where the card names an unusable file.
    """
    location = Path(folder)
    files = {
        CARD: encode_card(card).encode(),
        _model_file(card): model,
        CALIBRATION: _encode_npz(calibration),
        RAW: _encode_npz(raw) if raw else None,
        FEATURES: msgspec.json.format(msgspec.json.encode(features), indent=2) if features else None,
        BASELINE: baseline,
        PROVENANCE: provenance,
    }
    staging = location.with_name(f".{location.name}.{secrets.token_hex(4)}.part")
    try:
        staging.mkdir(parents=True)
        for name, data in files.items():
            if data is not None:
                write_file(staging / name, data)
        _publish(staging, location)
    except OSError as e:
        raise StorageError(f"cannot write {location}: {e.strerror}") from e
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return location


def read_model_dir(folder: Path | str) -> ModelDir:
    """Read a model directory. Raises NotFoundError without one, BadModelError where a part cannot be used."""
    location = Path(folder)
    if not is_model_dir(location):
        raise NotFoundError(f"{location} is not a model directory", hint=f"it has no {CARD}")
    card = decode_card((location / CARD).read_text(), origin=str(location / CARD))
    model = location / _model_file(card)
    if not model.is_file():
        raise BadModelError(f"{location / CARD} names {card.file}, which is not there")
    calibration = _read_npz(location / CALIBRATION)
    raw = _read_npz(location / RAW)
    if len({len(array) for array in (*calibration.values(), *raw.values())}) > 1:
        raise BadModelError(f"{location}: {CALIBRATION} and {RAW} hold arrays of different lengths")
    return ModelDir(
        folder=location,
        card=card,
        model=model,
        features=_read_features(location / FEATURES),
        calibration=calibration,
        raw=raw,
        baseline=_optional(location / BASELINE),
        provenance=_optional(location / PROVENANCE),
    )


def encode_card(card: ModelCard) -> str:
    """The card as TOML: a `[model]` and a `[run]` table of strings, numbers and lists."""
    tables = {"model": msgspec.to_builtins(card)}
    run = tables["model"].pop("run")
    if run is not None:
        tables["run"] = run
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )


def decode_card(text: str, *, origin: str = CARD) -> ModelCard:
    """Parse `model.toml`. Raises BadModelError for anything unknown or missing in it."""
    try:
        tables = tomllib.loads(text)
        unknown = set(tables) - {"model", "run"}
        if unknown:
            raise BadModelError(f"{origin} has an unknown table [{sorted(unknown)[0]}]")
        return msgspec.convert({**tables.get("model", {}), "run": tables.get("run")}, ModelCard)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as e:
        raise BadModelError(f"{origin} cannot be used: {e}") from e


def _toml(value: str | float | list[str | int]) -> str:
    # JSON's strings, integers, finite numbers and lists of them are TOML too, but for the one control character DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _model_file(card: ModelCard) -> str:
    name = card.file
    if name in _FIXED or name != Path(name).name or name in ("", ".", ".."):
        raise BadModelError(f"a model cannot be stored as {name!r}", hint="give a plain file name such as model.ubj")
    return name


def _encode_npz(arrays: Mapping[str, Array]) -> bytes:
    """Arrays as an uncompressed `.npz` with fixed times, so that the same arrays give the same bytes."""
    from outrider.runtime.bundle import encode_npy

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), encode_npy(arrays[name]))
    return buffer.getvalue()


def _read_npz(path: Path) -> dict[str, Array]:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as e:
        raise BadModelError(f"{path} cannot be read: {e}") from e
    if any(array.ndim == 0 for array in arrays.values()):
        raise BadModelError(f"{path} holds an array without rows")
    return arrays


def _read_features(path: Path) -> FeaturePlan | None:
    data = _optional(path)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=FeaturePlan)
    except msgspec.DecodeError as e:
        raise BadModelError(f"{path} cannot be used: {e}") from e


def _optional(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _publish(staging: Path, location: Path) -> None:
    """Put the finished folder in place. A folder cannot be renamed over a full one: the old one steps aside first."""
    aside = location.with_name(f"{staging.name}.old")
    if location.exists():
        location.rename(aside)
    try:
        staging.rename(location)
    except OSError:
        if aside.exists():
            aside.rename(location)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    fsync_folder(location.parent)
