"""Treelite checkpoints. Their reference is GTIL, Treelite's own interpreter, which decides in the thresholds' type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from outrider.compiler.frontends import ReadOptions
from outrider.compiler.frontends.convert import digest
from outrider.compiler.frontends.wellformed import check_checkpoint
from outrider.compiler.model import Array, Model, forest_model
from outrider.compiler.trees.read import read_treelite
from outrider.runtime.errors import BadModelError, UnsupportedError

_FLOAT32, _MULTI_CLASS = 2, 2  # Treelite's numbers for the type and the task


class TreeliteFrontend:
    """Reads checkpoints of Treelite 4, and Treelite's model objects."""

    def read_object(self, source: Any, options: ReadOptions) -> Model:
        """A `treelite.Model`."""
        import treelite

        if not isinstance(source, treelite.Model):
            raise UnsupportedError(f"Treelite objects of type {type(source).__name__} are not supported")
        return _read(source, options, bytes(source.serialize_bytes()))

    def read_file(self, path: Path, options: ReadOptions) -> Model:
        """A checkpoint by `Model.serialize`."""
        import treelite

        data = path.read_bytes()
        try:
            check_checkpoint(data)
            model = treelite.Model.deserialize(path)
        except BadModelError as e:
            raise BadModelError(f"{path} is not a whole Treelite checkpoint: {e.message}") from e
        except (treelite.TreeliteError, UnicodeDecodeError) as e:
            raise BadModelError(f"{path} is not a readable Treelite checkpoint: {_last_line(e)}") from e
        return _read(model, options, data)


def _read(model: Any, options: ReadOptions, data: bytes) -> Model:
    import treelite

    header = model.get_header_accessor()
    single = int(header.get_field("threshold_type")[0]) == _FLOAT32
    forest = read_treelite(model, precision="float32" if single else "float64")
    classes = [max(int(count), 1) for count in header.get_field("num_class")]
    task = int(header.get_field("task_type")[0])

    def predict(rows: Array) -> Array:
        result = treelite.gtil.predict(model, np.ascontiguousarray(rows, np.float32 if single else np.float64))
        matrix: Array = np.concatenate([result[:, target, :count] for target, count in enumerate(classes)], axis=1)
        return matrix[:, 0] if matrix.shape[1] == 1 else matrix

    return forest_model(
        forest,
        predict,
        framework="treelite",
        framework_version=treelite.__version__,
        description=f"checkpoint, {len(forest.trees)} trees, {forest.nodes} nodes",
        sha256=digest(data),
        probabilities=task == _MULTI_CLASS,
        decides_in="float32" if single else "float64",
        class_labels=tuple(options.class_labels),
        classes=classes if len(classes) > 1 and max(classes) > 1 else (),
        names=options.feature_names,
    )


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
