"""Frontends: framework -> Model. One module each, imported only when a model of its framework is read.

`FRONTENDS` is the table, asked in its order: a wrapper of XGBoost or LightGBM is a scikit-learn object too. A new
frontend is one module with a class of the interface `Frontend` and one line here.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from outrider.compiler.frontends.sniff import family_of, sniff_file
from outrider.compiler.model import Array, Label, Model
from outrider.runtime.errors import BadInputError, BadModelError, NotFoundError, UnsupportedError, UsageError

SUPPORTED = (
    "XGBoost (gbtree, dart), LightGBM, scikit-learn forests, extra trees, gradient boosting and isolation forests, "
    "Treelite checkpoints, ONNX, torch modules and torch.export programs"
)


@dataclass(frozen=True)
class ReadOptions:
    """What is known about a model beside itself. Empty: taken from the model where it says so.

    `examples`: arrays that the model takes, by input or the one under None; they show sizes that a file leaves free.
    `shapes`: sizes to bind, by input; None leaves one free.
    """

    class_labels: Sequence[Label] = ()
    feature_names: Sequence[str] = ()
    trust_pickle: bool = False
    examples: Mapping[str | None, Array] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int | None]] = field(default_factory=dict)


class Frontend(Protocol):
    """Reads the models of one framework."""

    def read_object(self, source: Any, options: ReadOptions) -> Model:
        """Read a model object. Raises BadModelError or UnsupportedError."""
        ...

    def read_file(self, path: Path, options: ReadOptions) -> Model:
        """Read a file that the framework wrote. Raises BadModelError or UnsupportedError."""
        ...


FRONTENDS: dict[str, str] = {
    "xgboost": "outrider.compiler.frontends.xgboost:XGBoostFrontend",
    "lightgbm": "outrider.compiler.frontends.lightgbm:LightGBMFrontend",
    "sklearn": "outrider.compiler.frontends.sklearn:SklearnFrontend",
    "treelite": "outrider.compiler.frontends.treelite:TreeliteFrontend",
    "onnx": "outrider.compiler.frontends.onnx:OnnxFrontend",
    "torch": "outrider.compiler.frontends.torch:TorchFrontend",
}


def frontend(name: str) -> Frontend:
    """The frontend of that name."""
    made: Frontend = pkgutil.resolve_name(FRONTENDS[name])()
    return made


def read_model(source: Any, options: ReadOptions = ReadOptions()) -> Model:
    """Read a model: a path, or an object of a supported framework.

    Raises NotFoundError, BadModelError for a file that cannot be read, UnsupportedError for a model of another kind.
    """
    if isinstance(source, str | Path):
        return _read_path(Path(source), options)
    family = family_of(source, tuple(FRONTENDS))
    if family is None:
        kind = f"{type(source).__module__}.{type(source).__qualname__}"
        raise UnsupportedError(f"models of type {kind} are not supported", hint=f"supported are {SUPPORTED}")
    return _guarded(family, lambda made: made.read_object(source, options))


def _read_path(path: Path, options: ReadOptions) -> Model:
    if path.is_dir():
        raise BadModelError(f"{path} is a folder without a model.toml", hint="give a model file or a model directory")
    if not path.is_file():
        raise NotFoundError(f"there is no model file {path}")
    kind = sniff_file(path)
    if kind == "pickle":
        return read_model(_unpickle(path, trusted=options.trust_pickle), options)
    return _guarded(kind, lambda made: made.read_file(path, options))


def _guarded(name: str, read: Any) -> Model:
    """Read, naming the package to install where the framework itself is not there."""
    try:
        model: Model = read(frontend(name))
    except ModuleNotFoundError as e:
        if e.name is not None and e.name.startswith("outrider"):
            raise
        raise UsageError(f"a {name} model needs the package {e.name}", hint=f"pip install {e.name}") from e
    return model


def _unpickle(path: Path, *, trusted: bool) -> Any:
    if not trusted:
        raise BadInputError(
            f"{path} is a pickle, which can run any code when it is read",
            hint="where you trust its origin: trust_pickle=True, or --trust-pickle",
        )
    load = pkgutil.resolve_name("joblib:load" if find_spec("joblib") else "pickle:load")
    try:
        with path.open("rb") as file:
            return load(file)
    except ModuleNotFoundError as e:
        raise UsageError(f"{path} needs the package {e.name}", hint=f"pip install {e.name}") from e
    except Exception as e:  # reading a pickle runs code of its own, which may raise anything
        raise BadModelError(f"{path} cannot be unpickled: {e}") from e


__all__ = ["FRONTENDS", "SUPPORTED", "Frontend", "ReadOptions", "frontend", "read_model"]
