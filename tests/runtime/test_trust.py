"""Signatures: the envelope of the specification, both algorithms, and each way to be wrong."""

from __future__ import annotations

import base64
import contextlib
import stat
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.runtime import errors
from outrider.runtime.trust import (
    BUNDLE_TYPE,
    DESIRED_TYPE,
    Algorithm,
    Envelope,
    PrivateKey,
    TrustStore,
    decode_envelope,
    encode_envelope,
    generate_key,
    load_private_key,
    load_public_key,
    sign,
    sign_bundle,
    verify,
    verify_bundle,
    write_key_pair,
)
from outrider.runtime.trust.dsse import MAX_ENVELOPE_BYTES, pre_authentication_encoding
from outrider.runtime.trust.statements import signature_path, verify_statement

ALGORITHMS: tuple[Algorithm, ...] = ("ed25519", "p256")
KIND = "http://example.com/HelloWorld"
# RFC 8032, section 7.1, test 2
RFC8032_SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
RFC8032_SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_the_encoding_of_the_specification() -> None:
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pre_authentication_encoding(KIND, b"hello world") == expected
    assert pre_authentication_encoding("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_ed25519_is_that_of_the_rfc() -> None:
    key = PrivateKey(ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC8032_SECRET)))
    assert key.sign(b"\x72").hex() == RFC8032_SIGNATURE


def test_the_specification_s_p256_example_verifies() -> None:
    """The test vector of the DSSE protocol document, made by another implementation."""
    numbers = ec.EllipticCurvePublicNumbers(
        46950820868899156662930047687818585632848591499744589407958293238635476079160,
        5640078356564379163099075877009565129882514886557779369047442380624545832820,
        ec.SECP256R1(),
    )
    from outrider.runtime.trust.keys import PublicKey

    public = PublicKey(numbers.public_key())
    raw = base64.b64decode("A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==")
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    assert public.verifies(der, pre_authentication_encoding(KIND, b"hello world"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sign_and_verify(algorithm: Algorithm) -> None:
    key = generate_key(algorithm)
    envelope = decode_envelope(encode_envelope(sign(b"payload", KIND, [key])))
    assert verify(envelope, KIND, [generate_key().public, key.public]) == b"payload"


def test_one_trusted_signature_of_several_is_enough() -> None:
    keys = [generate_key(), generate_key("p256")]
    envelope = sign(b"payload", KIND, keys)
    assert verify(envelope, KIND, [keys[1].public]) == b"payload"
    broken = msgspec.structs.replace(
        envelope, signatures=(msgspec.structs.replace(envelope.signatures[0], sig="AAAA"), envelope.signatures[1])
    )
    assert verify(broken, KIND, [key.public for key in keys]) == b"payload"


def test_each_way_to_be_wrong() -> None:
    key = generate_key()
    envelope = sign(b"payload", KIND, [key])
    replace = msgspec.structs.replace
    with pytest.raises(errors.UnknownKeyError):
        verify(envelope, KIND, [generate_key().public])
    with pytest.raises(errors.UnknownKeyError):
        verify(envelope, KIND, [])
    with pytest.raises(errors.UnsignedError):
        verify(replace(envelope, signatures=()), KIND, [key.public])
    with pytest.raises(errors.BadMessageError, match="expected an envelope"):
        verify(envelope, "other", [key.public])
    with pytest.raises(errors.BadSignatureError):
        verify(replace(envelope, payload=base64.b64encode(b"Payload").decode()), KIND, [key.public])
    with pytest.raises(errors.BadSignatureError):
        verify(replace(envelope, payload_type="other"), "other", [key.public])
    with pytest.raises(errors.BadMessageError, match="base64"):
        verify(replace(envelope, payload="*"), KIND, [key.public])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(deadline=None, max_examples=40)
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255), payload=st.binary(max_size=50))
def test_no_flipped_byte_passes(algorithm: Algorithm, position: int, flip: int, payload: bytes) -> None:
    key = KEYS[algorithm]
    data = bytearray(encode_envelope(sign(payload, KIND, [key])))
    data[position % len(data)] ^= flip
    with contextlib.suppress(errors.TrustError, errors.BadMessageError):
        assert verify(decode_envelope(bytes(data)), KIND, [key.public]) == payload


KEYS = {algorithm: generate_key(algorithm) for algorithm in ALGORITHMS}


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=200))
def test_what_is_no_envelope(data: bytes) -> None:
    with pytest.raises(errors.BadMessageError):
        decode_envelope(data)


def test_an_absurd_envelope() -> None:
    with pytest.raises(errors.BadMessageError, match="limit"):
        decode_envelope(b" " * (MAX_ENVELOPE_BYTES + 1))


def test_envelopes_are_those_of_the_specification() -> None:
    data = msgspec.json.decode(encode_envelope(sign(b"x", KIND, [generate_key()])))
    assert set(data) == {"payload", "payloadType", "signatures"}
    assert set(data["signatures"][0]) == {"keyid", "sig"}
    assert msgspec.json.decode(msgspec.json.encode(data), type=Envelope)


# Keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_key_files(algorithm: Algorithm, tmp_path: Path) -> None:
    key = generate_key(algorithm)
    private, public = write_key_pair(key, tmp_path / "keys", "publisher")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert load_private_key(private).public.keyid == load_public_key(public).keyid == key.public.keyid
    assert len(key.public.keyid) == 64
    with pytest.raises(errors.ConflictError, match="never overwritten"):
        write_key_pair(generate_key(), tmp_path / "keys", "publisher")
    assert load_private_key(private).public.keyid == key.public.keyid


def test_a_key_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a key would be neither usable nor replaced."""

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_key_pair(generate_key(), tmp_path / "keys", "fleet")
    assert not list((tmp_path / "keys").iterdir())
    monkeypatch.undo()
    private, _ = write_key_pair(generate_key(), tmp_path / "keys", "fleet")
    load_private_key(private)
    assert sorted(path.name for path in private.parent.iterdir()) == ["fleet.key", "fleet.pub"]


def test_what_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "x.pub"
    with pytest.raises(errors.NotFoundError):
        load_public_key(path)
    path.write_text("hello")
    for loader in (load_public_key, load_private_key):
        with pytest.raises(errors.BadInputError):
            loader(path)
    foreign = rsa.generate_private_key(65537, 2048)
    wrong_curve = ec.generate_private_key(ec.SECP384R1())
    for key in (foreign, wrong_curve):
        pem = serialization.Encoding.PEM
        path.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
        with pytest.raises(errors.BadInputError, match="neither"):
            load_public_key(path)
        path.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret"))
        )
        with pytest.raises(errors.BadInputError, match="unencrypted"):
            load_private_key(path)


# Store and bundle statements ------------------------------------------------------------------------------------


def test_the_store_keeps_purposes_apart(tmp_path: Path) -> None:
    bundle_key, desired_key = generate_key(), generate_key("p256")
    store = TrustStore.from_pems({"bundle": [bundle_key.public.pem()], "desired": [desired_key.public.pem()]})
    store.save(tmp_path / "trust")
    for known in (store, TrustStore.load(tmp_path / "trust")):
        assert [key.keyid for key in known.keys_for(BUNDLE_TYPE)] == [bundle_key.public.keyid]
        assert [key.keyid for key in known.keys_for(DESIRED_TYPE)] == [desired_key.public.keyid]
        assert known.keys_for("other") == ()
    _, public = write_key_pair(bundle_key, tmp_path, "one")
    assert [key.keyid for key in TrustStore.load(public).keys_for(BUNDLE_TYPE)] == [bundle_key.public.keyid]
    assert TrustStore.load(public).keys_for(DESIRED_TYPE) == ()
    with pytest.raises(errors.BadConfigError):
        TrustStore.load(tmp_path / "absent")


def test_a_statement_of_another_version_is_not_guessed_at() -> None:
    key = generate_key()
    fields = {"v": 2, "sha256": "0" * 64, "size": 1, "name": "n", "version": "1", "target": "host"}
    envelope = sign(msgspec.json.encode(fields), BUNDLE_TYPE, [key])
    with pytest.raises(errors.BadMessageError, match="statement"):
        verify_statement(envelope, TrustStore({BUNDLE_TYPE: [key.public]}))


def test_bundle_statements(tmp_path: Path) -> None:
    bundle = tmp_path / "x.orb"
    bundle.write_bytes(b"a bundle")
    key = generate_key()
    store = TrustStore({BUNDLE_TYPE: [key.public]})
    with pytest.raises(errors.UnsignedError):
        verify_bundle(bundle, store)
    sign_bundle(bundle, name="n", version="1", target="host", key=key)
    statement = verify_bundle(bundle, store)
    assert (statement.name, statement.version, statement.target, statement.size) == ("n", "1", "host", 8)
    bundle.write_bytes(b"A bundle")
    with pytest.raises(errors.DigestMismatchError):
        verify_bundle(bundle, store)
    signature_path(bundle).write_bytes(encode_envelope(sign(b"{}", BUNDLE_TYPE, [key])))
    with pytest.raises(errors.BadMessageError):
        verify_bundle(bundle, store)
    signature_path(bundle).write_bytes(encode_envelope(sign(b"{}", DESIRED_TYPE, [key])))
    with pytest.raises(errors.BadMessageError, match="expected an envelope"):
        verify_bundle(bundle, store)
