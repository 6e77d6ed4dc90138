"""MQTT messages: topics, payloads, and how each is encoded and published.

`KINDS` is the table of fleet messages: record, codec, retained or not, and expiry. Control messages are JSON, so
that an operator can read them off the wire; bulk ones (`stat`, `pred`, `blk`) are MessagePack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from outrider.runtime.errors import BadMessageError
from outrider.runtime.messages.payloads import (
    BLOCK_BYTES,
    LABEL_CHARS,
    MAX_DESIRED_BYTES,
    MAX_TRIALS,
    TERMINAL_STATES,
    TRIAL_DETAIL_CHARS,
    VERSION,
    Activate,
    ArtifactNeed,
    ArtifactTrial,
    Block,
    BlockRequest,
    BundleRef,
    Delta,
    Desired,
    Disk,
    Event,
    Health,
    Prediction,
    Predictions,
    Presence,
    Reply,
    Reported,
    SlotDesired,
    SlotReport,
    Stat,
    State,
)
from outrider.runtime.messages.topics import (
    EPOCH_TOPIC,
    ROOT,
    UP_FILTER,
    Address,
    parse_topic,
    shared_up_filter,
)

T = TypeVar("T")
_DAY_S = 86_400


@dataclass(frozen=True)
class Kind:
    """How one message travels. `expiry_s` None: it does not expire. All are QoS 1."""

    record: type[msgspec.Struct]
    codec: Literal["json", "msgpack"]
    retained: bool = False
    expiry_s: int | None = None


KINDS: dict[str, Kind] = {
    "presence": Kind(Presence, "json", retained=True),
    "reported": Kind(Reported, "json", retained=True),
    "evt": Kind(Event, "json"),
    "stat": Kind(Stat, "msgpack", expiry_s=7 * _DAY_S),
    "pred": Kind(Predictions, "msgpack", expiry_s=30 * _DAY_S),
    "rsp": Kind(Reply, "json"),
    "blk-request": Kind(BlockRequest, "json", expiry_s=60),
    "blk": Kind(Block, "msgpack", expiry_s=60),
}


def encode(message: msgspec.Struct) -> bytes:
    """The payload bytes of a message, by the codec of its kind (JSON for records outside the table)."""
    codec = next((kind.codec for kind in KINDS.values() if isinstance(message, kind.record)), "json")
    return msgspec.json.encode(message) if codec == "json" else msgspec.msgpack.encode(message)


def decode(data: bytes, record: type[T]) -> T:
    """Decode and validate a payload. Raises BadMessageError naming the field."""
    codec = next((kind.codec for kind in KINDS.values() if kind.record is record), "json")
    decoder: Any = msgspec.json.decode if codec == "json" else msgspec.msgpack.decode
    try:
        decoded: T = decoder(data, type=record)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise BadMessageError(f"not a valid {record.__name__}: {e}") from e
    return decoded


__all__ = [
    "BLOCK_BYTES",
    "EPOCH_TOPIC",
    "KINDS",
    "LABEL_CHARS",
    "MAX_DESIRED_BYTES",
    "MAX_TRIALS",
    "ROOT",
    "TERMINAL_STATES",
    "TRIAL_DETAIL_CHARS",
    "UP_FILTER",
    "VERSION",
    "Activate",
    "Address",
    "ArtifactNeed",
    "ArtifactTrial",
    "Block",
    "BlockRequest",
    "BundleRef",
    "Delta",
    "Desired",
    "Disk",
    "Event",
    "Health",
    "Kind",
    "Prediction",
    "Predictions",
    "Presence",
    "Reply",
    "Reported",
    "SlotDesired",
    "SlotReport",
    "Stat",
    "State",
    "decode",
    "encode",
    "parse_topic",
    "shared_up_filter",
]
