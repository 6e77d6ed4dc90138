"""Desired documents: which bundle a device gets, and what is signed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.fleet.desired import (
    Assignment,
    BundleFacts,
    artifact_needs,
    build_desired,
    choose_bundle,
    sign_desired,
)
from outrider.runtime.api_client.types import RolloutSettings
from outrider.runtime.bundle import Manifest
from outrider.runtime.errors import BadInputError
from outrider.runtime.messages import MAX_DESIRED_BYTES, Address, ArtifactNeed, Desired
from outrider.runtime.target import Libc, Requirements, Target
from outrider.runtime.trust import DESIRED_TYPE, decode_envelope, generate_key, verify

HOST = Target(name="host", arch="x86_64", triple="x86_64-linux-gnu", features=("avx2", "sse4_2"))


def facts(
    target: str,
    *,
    arch: str | None = "x86_64",
    features: tuple[str, ...] = (),
    count: int = 1,
    kind: str = "native",
) -> BundleFacts:
    need = ArtifactNeed(format=kind, abi=1, package=None, needs=Requirements(arch=arch, features=features))  # type: ignore[arg-type]
    return BundleFacts(
        sha256=target.encode().hex().rjust(64, "0")[:64],
        size=10,
        name="fraud",
        version="1",
        release=3,
        target=target,
        signature="{}",
        artifacts=(need,) * count,
    )


def test_the_bundle_of_the_own_target_is_preferred_where_it_can_run() -> None:
    own, generic = facts("host", features=("avx2",)), facts("x86-64")
    assert choose_bundle(HOST, [generic, own]) == (own, "")
    weak = msgspec.structs.replace(HOST, features=())
    assert choose_bundle(weak, [own, generic]) == (generic, "")


def test_else_the_most_specialised_one_that_fits() -> None:
    plain, fast, faster = facts("x86-64"), facts("x86-64-v3", features=("avx2",)), facts("v4", features=("avx512f",))
    assert choose_bundle(HOST, [plain, fast, faster])[0] == fast
    onnx = facts("any", arch=None)
    pi = Target(name="pi", arch="aarch64", triple="aarch64-linux-gnu")
    assert choose_bundle(pi, [plain, onnx])[0] == onnx
    wasm = facts("wasm32-wasi", arch=None, features=("lime1", "simd128"), kind="wasm")
    native = facts("aarch64", arch="aarch64")
    assert choose_bundle(pi, [wasm, native])[0] == native, "what is compiled for the architecture, not for any"
    assert choose_bundle(pi, [wasm, plain])[0] == wasm


def test_none_fits_says_why() -> None:
    pi = Target(name="pi", arch="armv7", triple="armv7-linux-gnueabihf")
    bundle, reason = choose_bundle(pi, [facts("host"), facts("x86-64")])
    assert bundle is None
    assert "fraud:1" in reason
    assert "armv7" in reason
    assert choose_bundle(pi, []) == (None, "the release has no bundle")
    old = msgspec.structs.replace(HOST, libc=Libc(kind="glibc", version=(2, 17)))
    need = ArtifactNeed(
        format="native", abi=1, package=None, needs=Requirements(libc=Libc(kind="glibc", version=(2, 31)))
    )
    newer = msgspec.structs.replace(facts("host"), artifacts=(need,))
    assert "glibc 2.31" in choose_bundle(old, [newer])[1]


def test_needs_come_from_a_stored_manifest(manifest: Callable[..., Manifest]) -> None:
    stored = msgspec.to_builtins(manifest("fraud", "1", "host", features=("avx2",)))
    [need] = artifact_needs(stored)
    assert (need.format, need.abi, need.needs.features) == ("native", 1, ("avx2",))


@settings(deadline=None, max_examples=50)
@given(
    rev=st.integers(1, 2**53),
    now=st.floats(0, 4e9),
    ttl=st.floats(1, 1e7),
    attempt=st.integers(1, 10),
    soak=st.floats(0, 1e6),
)
def test_what_is_signed_is_what_was_built(rev: int, now: float, ttl: float, attempt: int, soak: float) -> None:
    key = generate_key()
    bundle = facts("host")
    wanted = Assignment(job="7", attempt=attempt, bundle=bundle, settings=RolloutSettings(soak_s=soak, jitter_s=2.0))
    document = build_desired(
        Address(tenant="acme", device="till-7"),
        {"main": wanted},
        rev=rev,
        now=now,
        ttl_s=ttl,
        urls={bundle.sha256: ["http://fleet/x"]},
    )
    payload = verify(decode_envelope(sign_desired(document, key)), DESIRED_TYPE, [key.public])
    assert msgspec.json.decode(payload, type=Desired) == document
    assert (document.rev, document.job, document.attempt) == (rev, "7", attempt)
    slot = document.slots["main"]
    assert (slot.health.soak_s, slot.activate.jitter_s, slot.urls) == (soak, 2.0, ("http://fleet/x",))
    assert document.not_after > now


def test_a_document_without_slots_withdraws() -> None:
    address = Address(tenant="acme", device="a")
    document = build_desired(address, {}, rev=2, now=1.0, ttl_s=1.0)
    assert (document.slots, document.job, document.attempt) == ({}, "", 0)


def test_the_newest_rollout_names_the_job() -> None:
    def wanted(job: str) -> Assignment:
        return Assignment(job=job, attempt=1, bundle=facts("host"), settings=RolloutSettings())

    slots: dict[str, Any] = {"main": wanted("9"), "other": wanted("10")}
    document = build_desired(Address(tenant="acme", device="a"), slots, rev=1, now=0.0, ttl_s=1.0)
    assert document.job == "10"


def test_a_document_over_8_kb_is_refused() -> None:
    wanted = Assignment(job="1", attempt=1, bundle=facts("host", count=60), settings=RolloutSettings())
    document = build_desired(Address(tenant="acme", device="a"), {"main": wanted}, rev=1, now=0.0, ttl_s=1.0)
    with pytest.raises(BadInputError, match=str(MAX_DESIRED_BYTES)):
        sign_desired(document, generate_key())
