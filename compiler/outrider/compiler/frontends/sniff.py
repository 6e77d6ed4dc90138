"""Which framework a model object or file belongs to, without importing any framework."""

from __future__ import annotations

import zipfile
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
_KNOWN_FILES = (
    "supported are XGBoost .json and .ubj, LightGBM text, Treelite checkpoints, ONNX, torch.export's .pt2, and pickles "
    "you trust"
)
_TO_PT2 = "export the module: torch.export.save(torch.export.export(module.eval(), (x,)), 'model.pt2')"


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
    if head.startswith(b"PK\x03\x04") and (kind := _torch_archive(path)) is not None:
        return kind
    if path.suffix.lower() in (".pt2", ".pt", ".pth"):
        raise BadModelError(f"{path} is not a readable torch file", hint=_TO_PT2)
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


def _torch_archive(path: Path) -> str | None:
    """`torch` for a program that torch.export saved, None for an archive that torch did not write.

    Raises UnsupportedError for what else torch saves, which is no model by itself.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    files = {name.rpartition("/")[2] for name in names}
    if "archive_format" in files or "serialized_exported_program.json" in files:
        return "torch"
    if "data.pkl" not in files:
        return None
    if any("/code/" in name for name in names):
        raise UnsupportedError(f"{path} is a TorchScript archive, which is not supported", hint=_TO_PT2)
    raise UnsupportedError(
        f"{path} holds weights that torch.save wrote, which are no model by themselves", hint=_TO_PT2
    )
