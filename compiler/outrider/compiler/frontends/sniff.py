"""Which framework a model object or file belongs to, without importing any framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from outrider.runtime.errors import BadModelError, UnsupportedError

_SUFFIXES = {
    ".onnx": "onnx",
    ".ubj": "xgboost",
    ".json": "xgboost",
    ".txt": "lightgbm",
    ".tl": "treelite",
    ".treelite": "treelite",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".joblib": "pickle",
}
_KNOWN_FILES = "supported are XGBoost .json and .ubj, LightGBM text, Treelite checkpoints, ONNX, and pickles you trust"


def family_of(source: Any, families: tuple[str, ...]) -> str | None:
    """The first family in which the object's class, or a class it derives from, is defined."""
    roots = {kind.__module__.partition(".")[0] for kind in type(source).__mro__}
    return next((family for family in families if family in roots), None)


def sniff_file(path: Path) -> str:
    """The frontend's name for a model file, or `pickle`; by its suffix, else by its first bytes.

    Raises UnsupportedError for known formats that are not supported, BadModelError for unknown ones.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise BadModelError(f"{path} is empty")
    if path.suffix == ".cbm" or head.startswith(b"CBM1"):
        raise UnsupportedError("CatBoost models are not supported", hint=_KNOWN_FILES)
    if head.startswith(b"binf"):
        raise UnsupportedError("XGBoost's old binary format is not supported", hint="save the model as .ubj or .json")
    by_suffix = _SUFFIXES.get(path.suffix.lower())
    if by_suffix is not None:
        return by_suffix
    if head.startswith(b"tree\n"):
        return "lightgbm"
    if head.lstrip().startswith((b'{"', b"{L", b"{\n")):
        return "xgboost"
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "pickle"
    if head.startswith(b"\x04\x00\x00\x00"):
        return "treelite"
    if head.startswith(b"\x08"):
        return "onnx"
    raise BadModelError(f"{path} is not a model file of a known format", hint=_KNOWN_FILES)
