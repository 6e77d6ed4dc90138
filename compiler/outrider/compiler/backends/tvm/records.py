"""Tuning records: which schedule was the fastest for a function of loops, found by what the function does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from outrider.compiler.backends.tvm.machine import Machine
from outrider.compiler.backends.tvm.schedules import VERSION, Choice
from outrider.runtime.errors import BadInputError


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The best schedule for a function and the least CPU time that a call took with it, nanoseconds."""

    choice: Choice
    nanoseconds: float


class Records(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Records by `key`. The same records give the same bytes."""

    version: int = VERSION
    found: dict[str, Found] = {}

    def encode(self) -> bytes:
        """As JSON, sorted by key."""
        return msgspec.json.encode(self, order="sorted")

    @classmethod
    def decode(cls, data: bytes) -> Records:
        """What `encode` gave; records of another version of the schedules hold nothing. Raises BadInputError."""
        try:
            records = msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError as e:
            raise BadInputError(f"the tuning records cannot be read: {e}") from e
        return records if records.version == VERSION else cls()

    def choice(self, key: str) -> Choice | None:
        """The schedule on record; None where there is none."""
        found = self.found.get(key)
        return None if found is None else found.choice

    def merged(self, others: Mapping[str, Found]) -> Records:
        """These and others, which replace those of the same key."""
        return Records(found={**self.found, **others})

    def only(self, keys: Iterable[str]) -> Records:
        """Those of the given keys: what a bundle carries for one network."""
        return Records(found={key: self.found[key] for key in sorted(set(keys)) if key in self.found})


def key_of(function: Any, machine: Machine) -> str:
    """A hash of what the loops do, whatever their names are, and of what they are made for."""
    import tvm
    import tvm_ffi

    function = function.without_attr("global_symbol") if "global_symbol" in (function.attrs or {}) else function
    content = tvm_ffi.structural_hash(function, map_free_vars=True) & (2**64 - 1)
    shapes = " ".join(f"{parameter.dtype}{list(parameter.shape)}" for parameter in function.params)
    text = f"{VERSION} {tvm.__version__} {machine.key} {content:016x} {shapes}"
    return hashlib.sha256(text.encode()).hexdigest()
