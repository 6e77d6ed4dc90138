"""Damaged bundles: whatever bytes are read, the outcome is an OutriderError or the bundle itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.runtime.bundle import Manifest, open_bundle, write_bundle
from outrider.runtime.errors import OutriderError

Parts = tuple[Manifest, dict[str, bytes]]


@pytest.fixture(scope="module")
def sound(make_parts: Callable[..., Parts], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, Parts]:
    parts = make_parts(b"library" * 20)
    path = tmp_path_factory.mktemp("fuzz") / "x.orb"
    write_bundle(path, *parts)
    return path, path.read_bytes(), parts


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """Up to three edits; positions are fractions of the file, half of them near its end, where the directory is."""
    places = st.one_of(st.floats(0, 1), st.floats(0.8, 1))
    kinds = st.sampled_from(["flip", "cut", "insert", "overwrite", "delete"])
    payload = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"PK\x03\x04", b"PK\x05\x06", b"\xff" * 4]))
    return draw(st.lists(st.tuples(kinds, places, payload), min_size=1, max_size=3))


def damage(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    buffer = bytearray(data)
    for kind, place, payload in changes:
        at = int(place * len(buffer))
        if kind == "flip" and at < len(buffer):
            buffer[at] ^= payload[0] or 1
        elif kind == "cut":
            del buffer[at:]
        elif kind == "insert":
            buffer[at:at] = payload
        elif kind == "overwrite":
            buffer[at : at + len(payload)] = payload
        else:
            del buffer[at : at + len(payload)]
    return bytes(buffer)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=edits())
def test_damage_is_an_error_or_harmless(
    sound: tuple[Path, bytes, Parts], tmp_path: Path, changes: list[tuple[str, float, bytes]]
) -> None:
    _, data, (manifest, files) = sound
    wrong = damage(data, changes)
    path = tmp_path / "x.orb"
    path.write_bytes(wrong)
    try:
        bundle = open_bundle(path)
    except OutriderError:
        assert wrong != data
        return
    assert bundle.manifest == manifest
    assert {name: bundle.read(name) for name in bundle.files()} == files


def test_every_flipped_byte_is_noticed(sound: tuple[Path, bytes, Parts], tmp_path: Path) -> None:
    """The form is canonical, so not one byte of a bundle is free."""
    _, data, _ = sound
    path = tmp_path / "x.orb"
    for at in range(0, len(data), 7):
        wrong = bytearray(data)
        wrong[at] ^= 0x10
        path.write_bytes(wrong)
        with pytest.raises(OutriderError):
            open_bundle(path)
