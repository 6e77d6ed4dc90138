"""What gets into the registry, what does not, and how its bytes come out again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.fleet import audit
from outrider.fleet.artifacts import ByteRange, UnsatisfiableRange, parse_range
from outrider.fleet.db import DeploymentRow, RolloutRow
from outrider.runtime.api_client import BundleInfo, EnrolRequest, FleetClient, RolloutRequest
from outrider.runtime.errors import (
    BadBundleError,
    BadMessageError,
    BadSignatureError,
    ConflictError,
    DigestMismatchError,
    NotFoundError,
    StorageError,
    StorageFullError,
    UnknownKeyError,
    UnsignedError,
)
from outrider.runtime.fetch import BlockFile, HttpSource, fetch_bundle
from outrider.runtime.messages import SlotDesired
from outrider.runtime.target import Target
from outrider.runtime.trust import generate_key

HOST = Target(name="host", arch="x86_64", triple="x86_64-linux-gnu")


def _fetch(web: Any, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=10)
    sent = {"Authorization": f"Bearer {web.key}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET", path, headers=sent)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), body


def test_publishing_gives_a_release(web: Any, make_bundle: Callable[..., Path]) -> None:
    path = make_bundle()
    info = web.publish(path)
    assert (info.name, info.version, info.target, info.run_id) == ("fraud", "1", "host", "run-1")
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info.signed_by == (web.publisher.public.keyid,)
    stored = web.state.settings.bundles_dir / info.sha256[:2] / f"{info.sha256}.orb"
    assert stored.read_bytes() == path.read_bytes()
    assert list((web.state.settings.bundles_dir / "incoming").iterdir()) == []
    (release,) = web.client.releases()
    assert release.bundles == (info,)
    assert web.client.bundle(info.sha256) == info
    assert [entry.action for entry in web.client.audit()][-1] == "bundle.publish"


def test_a_release_holds_one_bundle_a_target(web: Any) -> None:
    first, second = web.published(target="host"), web.published(target="aarch64")
    other = web.published(version="2")
    assert first.release == second.release != other.release
    assert [len(release.bundles) for release in web.client.releases("fraud")] == [1, 2]
    assert web.client.releases("other") == []
    assert len(web.client.bundles()) == 3


def test_the_same_bytes_again_change_nothing(web: Any, make_bundle: Callable[..., Path]) -> None:
    path = make_bundle()
    before = web.publish(path)
    entries = len(web.client.audit())
    assert web.publish(path) == before
    assert len(web.client.audit()) == entries


def test_other_bytes_under_the_same_name_conflict(web: Any) -> None:
    info = web.published()
    with pytest.raises(ConflictError, match="other bytes"):
        web.published(artifact=b"other code")
    assert web.client.bundles() == [info]


def test_unsigned_is_refused(web: Any, make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(UnsignedError):
        web.client.publish_bundle(make_bundle(), b"")
    assert web.client.bundles() == []


def test_a_strangers_signature_is_refused(web: Any, make_bundle: Callable[..., Path], sign: Callable[..., Any]) -> None:
    path = make_bundle()
    with pytest.raises(UnknownKeyError):
        web.client.publish_bundle(path, sign(path, generate_key()))


def test_a_forged_signature_is_refused(web: Any, make_bundle: Callable[..., Path], sign: Callable[..., Any]) -> None:
    path = make_bundle()
    envelope = json.loads(sign(path, web.publisher))
    stranger = json.loads(sign(path, generate_key()))
    envelope["signatures"][0]["sig"] = stranger["signatures"][0]["sig"]
    with pytest.raises(BadSignatureError):
        web.client.publish_bundle(path, json.dumps(envelope).encode())


def test_a_signature_over_another_name_is_refused(
    web: Any, make_bundle: Callable[..., Path], sign: Callable[..., Any]
) -> None:
    path = make_bundle()
    with pytest.raises(BadSignatureError, match="speaks of"):
        web.client.publish_bundle(path, sign(path, web.publisher, version="2"))


def test_a_flipped_byte_is_refused(web: Any, make_bundle: Callable[..., Path], sign: Callable[..., Any]) -> None:
    path = make_bundle()
    envelope = sign(path, web.publisher)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestMismatchError):
        web.client.publish_bundle(path, envelope)
    assert list((web.state.settings.bundles_dir / "incoming").iterdir()) == []


def test_what_is_signed_but_no_bundle_is_refused(web: Any, tmp_path: Path, sign: Callable[..., Any]) -> None:
    path = tmp_path / "x.orb"
    path.write_bytes(b"not a zip")
    with pytest.raises(BadBundleError):
        web.client.publish_bundle(path, sign(path, web.publisher, name="fraud"))


def test_a_signature_that_is_no_envelope_is_refused(web: Any, make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(BadMessageError):
        web.client.publish_bundle(make_bundle(), b"{}")


def test_a_key_trusted_later_counts_at_once(
    web: Any, make_bundle: Callable[..., Path], sign: Callable[..., Any]
) -> None:
    key = generate_key()
    path = make_bundle()
    (web.state.settings.trust_dir / "bundle" / "later.pub").write_text(key.public.pem())
    assert web.client.publish_bundle(path, sign(path, key)).signed_by == (key.public.keyid,)


def test_uploads_cut_short_are_cleaned_up(web: Any) -> None:
    left = web.state.settings.bundles_dir / "incoming" / "x.orb.part"
    left.write_bytes(b"x")
    web.state.registry.clean()
    assert not left.exists()


def test_a_full_disk_is_said_and_leaves_nothing(
    web: Any, make_bundle: Callable[..., Path], sign: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, _data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    real = web.state.registry.incoming

    @contextlib.contextmanager
    def incoming() -> Iterator[tuple[Path, Full]]:
        with real() as (path, _file):
            yield path, Full()

    path = make_bundle(name="full")
    envelope = sign(path, web.publisher)
    monkeypatch.setattr(web.state.registry, "incoming", incoming)
    with pytest.raises(StorageFullError, match="No space left"):
        web.client.publish_bundle(path, envelope)
    monkeypatch.undo()
    assert not list((web.state.settings.bundles_dir / "incoming").iterdir())
    assert web.client.publish_bundle(path, envelope).name == "full"


def test_an_upload_that_is_flushed_holds_up_nobody(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def flush(_path: Path) -> None:
        with web.state.database.session() as session:
            written.append(audit.record(session, actor="a", action="b", subject="c", now=1.0))

    monkeypatch.setattr("outrider.fleet.registry.fsync_file", flush)
    web.published(name="slow-disk")
    assert written


def test_unknown_bundles(web: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        web.client.bundle("0" * 64)
    with pytest.raises(NotFoundError):
        web.client.publish_bundle(tmp_path / "none.orb", b"{}")
    assert _fetch(web, f"/v1/bundles/{'0' * 64}/content")[0] == 404


def test_downloading(web: Any, make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    path, copy = make_bundle(), tmp_path / "copy.orb"
    info = web.publish(path)
    web.client.download_bundle(info.sha256, copy)
    assert copy.read_bytes() == path.read_bytes()
    stored = web.state.settings.bundles_dir / info.sha256[:2] / f"{info.sha256}.orb"
    stored.write_bytes(bytes(info.size))
    with pytest.raises(DigestMismatchError):
        web.client.download_bundle(info.sha256, tmp_path / "other.orb")
    with pytest.raises(NotFoundError):
        web.client.download_bundle("0" * 64, tmp_path / "other.orb")
    with pytest.raises(StorageError):
        web.client.download_bundle(info.sha256, tmp_path / "none" / "other.orb")
    assert not (tmp_path / "other.orb").exists()
    assert not list(tmp_path.glob(".*"))


# Bytes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def content(web: Any, make_bundle: Callable[..., Path]) -> tuple[Any, str, bytes]:
    path = make_bundle(artifact=bytes(range(256)) * 3000)
    info = web.publish(path)
    return web, f"/v1/bundles/{info.sha256}/content", path.read_bytes()


def test_the_whole_file(content: tuple[Any, str, bytes]) -> None:
    web, path, data = content
    status, headers, body = _fetch(web, path)
    assert (status, body) == (200, data)
    assert headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "first", "last"), [("bytes=0-0", 0, 1), ("bytes=10-99", 10, 100), ("bytes=-7", -7, None)]
)
def test_a_range(content: tuple[Any, str, bytes], asked: str, first: int, last: int | None) -> None:
    web, path, data = content
    status, headers, body = _fetch(web, path, Range=asked)
    assert (status, body) == (206, data[first:last])
    start = first % len(data)
    assert headers["content-range"] == f"bytes {start}-{start + len(body) - 1}/{len(data)}"


def test_resuming_to_the_end(content: tuple[Any, str, bytes]) -> None:
    web, path, data = content
    status, _, body = _fetch(web, path, Range=f"bytes={len(data) - 5}-")
    assert (status, body) == (206, data[-5:])


def test_a_range_beyond_the_end(content: tuple[Any, str, bytes]) -> None:
    web, path, data = content
    status, headers, body = _fetch(web, path, Range=f"bytes={len(data)}-")
    assert (status, headers["content-range"], body) == (416, f"bytes */{len(data)}", b"")


def test_if_range_protects_against_another_file(content: tuple[Any, str, bytes]) -> None:
    web, path, data = content
    right = f'"{hashlib.sha256(data).hexdigest()}"'
    assert _fetch(web, path, Range="bytes=5-9", If_Range=right)[0] == 206
    assert _fetch(web, path, Range="bytes=5-9", If_Range='"other"')[::2] == (200, data)


def test_if_none_match(content: tuple[Any, str, bytes]) -> None:
    web, path, data = content
    assert _fetch(web, path, If_None_Match=f'"{hashlib.sha256(data).hexdigest()}"')[::2] == (304, b"")


def test_a_damaged_registry_is_a_clear_error(content: tuple[Any, str, bytes]) -> None:
    web, path, data = content
    sha256 = path.split("/")[3]
    stored = web.state.settings.bundles_dir / sha256[:2] / f"{sha256}.orb"
    stored.write_bytes(data[:-1])
    status, _, body = _fetch(web, path)
    assert status == 503
    assert json.loads(body)["error"]["type"] == StorageError.__name__


def _deploy(web: Any, device: str, bundle: BundleInfo) -> None:
    rollout = web.client.create_rollout(RolloutRequest(name=bundle.name, version=bundle.version))
    with web.state.database.session() as session:
        assert session.get(RolloutRow, rollout.id) is not None
        session.add(
            DeploymentRow(
                rollout=rollout.id,
                device=device,
                bundle=bundle.sha256,
                wave=0,
                state="OFFERED",
                created=1.0,
                updated=1.0,
            )
        )


def test_a_device_fetches_what_its_document_names_by_whatever_name_it_knows_the_fleet(web: Any, tmp_path: Path) -> None:
    bundle, elsewhere = web.published(), web.url.replace("127.0.0.1", "localhost")
    request = EnrolRequest(token=web.client.create_enrolment_token(), name="till-7", target=HOST)
    device = FleetClient(elsewhere).enrol(request)
    assert device.api_url == elsewhere
    _deploy(web, device.device, bundle)
    wanted = SlotDesired(
        bundle=bundle.sha256,
        size=bundle.size,
        name=bundle.name,
        version=bundle.version,
        release=bundle.release,
        target=bundle.target,
        signature="",
        artifacts=(),
        urls=(web.state.settings.bundle_url(bundle.sha256),),
    )
    with BlockFile(tmp_path / "x.part", tmp_path / "x.map", bundle.size) as blocks:
        assert fetch_bundle([HttpSource(device.secret, origin=device.api_url)], wanted, blocks, lambda: False)


def test_a_device_gets_what_was_deployed_to_it_and_nothing_else(web: Any) -> None:
    mine, other = web.published(), web.published(version="2")
    device = web.enrol()
    _deploy(web, device.device, mine)
    authorization = f"Bearer {device.secret}"
    assert _fetch(web, f"/v1/bundles/{mine.sha256}/content", Authorization=authorization)[0] == 200
    assert _fetch(web, f"/v1/bundles/{other.sha256}/content", Authorization=authorization)[0] == 403


@settings(deadline=None, max_examples=200)
@given(size=st.integers(0, 50), header=st.from_regex(r"\Abytes=[0-9]{0,3}-[0-9]{0,3}\Z") | st.text(max_size=20))
def test_every_range_is_within_the_file(size: int, header: str) -> None:
    try:
        span = parse_range(header, size)
    except UnsatisfiableRange:
        return
    assert span is None or 0 <= span.first <= span.last < size


def test_ranges_that_are_not_understood_are_ignored() -> None:
    for header in (
        None,
        "",
        "bytes=-",
        "bytes=5-2",
        "bytes=0-1,4-5",
        "lines=0-1",
        "bytes=a-b",
        "bytes=٣-٤",
        f"bytes=0-{'9' * 5000}",
    ):
        assert parse_range(header, 10) is None
    assert parse_range("bytes=-99", 10) == ByteRange(0, 9)
    with pytest.raises(UnsatisfiableRange):
        parse_range("bytes=-0", 10)
