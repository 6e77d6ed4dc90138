"""Messages: every record survives its codec and fits its JSON Schema; topics and kinds hold together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from outrider.runtime import messages
from outrider.runtime.errors import BadMessageError
from outrider.runtime.messages import KINDS, Address, Desired, decode, encode, parse_topic
from outrider.runtime.messages.topics import NAME_PATTERN
from outrider.runtime.schema import DIALECT, RECORDS, main, schema_files, schema_of

SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"
TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Values of a type as msgspec sees it, within its constraints."""
    if isinstance(kind, inspect.StructType):
        return st.builds(kind.cls, **{field.name: values(field.type) for field in kind.fields})
    if isinstance(kind, inspect.StrType):
        if kind.pattern:
            return st.from_regex(kind.pattern, fullmatch=True).filter(lambda text: "\n" not in text)
        return TEXT.filter(lambda text: len(text) >= (kind.min_length or 0))
    if isinstance(kind, inspect.UnionType):
        return st.one_of([values(member) for member in kind.types])
    if isinstance(kind, inspect.DictType):
        return st.dictionaries(values(kind.key_type), values(kind.value_type), max_size=2)
    if isinstance(kind, inspect.VarTupleType):
        return st.lists(values(kind.item_type), max_size=2).map(tuple)
    if isinstance(kind, inspect.TupleType):
        return st.tuples(*map(values, kind.item_types))
    if isinstance(kind, inspect.LiteralType):
        return st.sampled_from(kind.values)
    if isinstance(kind, inspect.IntType):
        return st.integers(-(2**63) if kind.ge is None else kind.ge, 2**63 - 1)
    simple: dict[type[inspect.Type], st.SearchStrategy[Any]] = {
        inspect.FloatType: st.floats(allow_nan=False, allow_infinity=False),
        inspect.BoolType: st.booleans(),
        inspect.NoneType: st.none(),
        inspect.BytesType: st.binary(max_size=50),
    }
    return simple[type(kind)]


RECORD_KINDS = {name: record for name, record in RECORDS.items() if name not in ("manifest",)}
STRATEGIES = {name: values(inspect.type_info(record)) for name, record in RECORD_KINDS.items()}


@pytest.mark.parametrize("name", RECORD_KINDS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_round_trip_and_schema(name: str, data: st.DataObject) -> None:
    record = RECORD_KINDS[name]
    message = data.draw(STRATEGIES[name])
    assert decode(encode(message), record) == message
    jsonschema.validate(
        msgspec.json.decode(msgspec.json.encode(message)), schema_of(record), jsonschema.Draft202012Validator
    )


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=100))
def test_what_does_not_decode_is_a_bad_message(name: str, data: bytes) -> None:
    with pytest.raises(BadMessageError, match="not a valid"):
        decode(data, KINDS[name].record)


def test_unknown_fields_and_versions_are_refused() -> None:
    message = {"v": 1, "boot_id": "b", "session": "s", "online": True, "at": 0.0}
    assert decode(msgspec.json.encode(message), messages.Presence).online
    for wrong in ({"extra": 1}, {"v": 2}, {"online": "yes"}):
        with pytest.raises(BadMessageError, match="Presence"):
            decode(msgspec.json.encode(message | wrong), messages.Presence)


def test_what_a_device_says_of_itself_is_bounded() -> None:
    message = {"v": 1, "boot_id": "b", "session": "s", "online": True, "at": 0.0}
    for field in ("boot_id", "session"):
        with pytest.raises(BadMessageError, match=field):
            decode(msgspec.json.encode(message | {field: "x" * 129}), messages.Presence)
    disk, target = {"total": 1, "free": 1}, {"name": "h", "arch": "x86_64", "triple": "t"}
    state = {"v": 1, "boot_id": "b", "seq": 1, "at": 0.0, "revision": 0, "disk": disk, "runtime": "", "target": target}
    for count in (64, 65):
        data = msgspec.json.encode(state | {"slots": {str(number): {} for number in range(count)}})
        if count == 64:
            assert len(decode(data, messages.Reported).slots) == count
            continue
        with pytest.raises(BadMessageError, match="slots"):
            decode(data, messages.Reported)


def test_control_is_json_and_bulk_is_messagepack() -> None:
    block = messages.Block(v=1, index=0, data=b"\x00" * 100)
    assert len(encode(block)) < 130
    assert encode(messages.BlockRequest(v=1, sha256="0" * 64, index=0, n=1)).startswith(b'{"v":1')
    assert {name for name, kind in KINDS.items() if kind.retained} == {"presence", "reported"}


def test_every_message_record_is_in_the_schemas() -> None:
    roots = {kind.record for kind in KINDS.values()} | {Desired}
    assert roots <= set(RECORDS.values())


# Topics ---------------------------------------------------------------------------------------------------------

names = st.from_regex(NAME_PATTERN, fullmatch=True).filter(lambda text: "\n" not in text)


@settings(deadline=None, max_examples=100)
@given(tenant=names, device=names, kind=st.from_regex(r"[a-z0-9]{1,9}(/[a-z0-9]{1,9})?", fullmatch=True))
def test_topics_round_trip(tenant: str, device: str, kind: str) -> None:
    address = Address(tenant=tenant, device=device)
    assert parse_topic(address.up(kind)) == (address, "up", kind)
    assert parse_topic(address.down(kind)) == (address, "dn", kind)


@settings(deadline=None, max_examples=200)
@given(topic=st.text(max_size=30) | st.from_regex(r"or1(/[a-z+#]*){0,5}", fullmatch=True))
def test_other_topics_are_bad_messages(topic: str) -> None:
    try:
        address, direction, kind = parse_topic(topic)
    except BadMessageError:
        return
    assert topic == f"or1/{address.tenant}/{address.device}/{direction}/{kind}"


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "$SYS", ".hidden", "a b", "x" * 65, "ü", "a\n"])
def test_names_that_would_escape_their_topic(name: str) -> None:
    with pytest.raises(BadMessageError):
        Address(tenant="t", device=name)


# Schemas --------------------------------------------------------------------------------------------------------


def test_the_schema_files_are_current() -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.glob("*.json")}
    assert found == schema_files(), "run 'make schema'"


@pytest.mark.parametrize("name", RECORDS)
def test_schemas_are_valid(name: str) -> None:
    schema = schema_of(RECORDS[name])
    assert schema["$schema"] == DIALECT
    jsonschema.Draft202012Validator.check_schema(schema)
    assert re.fullmatch(r"[a-z-]+", name)


def test_manifests_fit_their_schema(make_parts: Any) -> None:
    manifest, _ = make_parts()
    built = msgspec.json.decode(msgspec.json.encode(manifest))
    jsonschema.validate(built, schema_of(RECORDS["manifest"]), jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(built | {"surprise": 1}, schema_of(RECORDS["manifest"]), jsonschema.Draft202012Validator)


def test_writing_the_schemas(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    assert main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(schema_files())
