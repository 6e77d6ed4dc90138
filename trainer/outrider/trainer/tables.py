"""Making what a recipe names from the tables of sources and models."""

from __future__ import annotations

import pkgutil
from typing import Any, TypeVar

import msgspec

from outrider.runtime.errors import BadRecipeError
from outrider.trainer.data import SOURCES
from outrider.trainer.data.base import Source
from outrider.trainer.models import MODELS
from outrider.trainer.models.base import ModelKind

T = TypeVar("T", bound=msgspec.Struct)


def make_source(table: dict[str, Any], origin: str) -> Source:
    """The source that `[source]` describes. Raises BadRecipeError naming the known kinds or keys."""
    return _make(SOURCES, table, f"{origin}: [source]", Source)


def make_model(table: dict[str, Any], origin: str) -> ModelKind:
    """The kind of model that `[model]` describes. Raises BadRecipeError naming the known kinds or keys."""
    return _make(MODELS, table, f"{origin}: [model]", ModelKind)


def _make(kinds: dict[str, str], table: dict[str, Any], where: str, base: type[T]) -> T:
    settings = dict(table)
    kind = settings.pop("kind", None)
    entry = kinds.get(kind) if isinstance(kind, str) else None
    if entry is None:
        raise BadRecipeError(f"{where} has no known kind, but {kind!r}", hint=f"known kinds: {', '.join(kinds)}")
    chosen: type[T] = pkgutil.resolve_name(entry)
    assert issubclass(chosen, base), entry
    try:
        return msgspec.convert(settings, chosen)
    except msgspec.ValidationError as e:
        known = ", ".join(("kind", *chosen.__struct_fields__))
        raise BadRecipeError(f"{where}: {e}", hint=f"known keys: {known}") from e
