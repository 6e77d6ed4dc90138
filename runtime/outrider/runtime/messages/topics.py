"""MQTT topics: `or1/{tenant}/{device}/dn/...` to a device, `.../up/...` from it.

A device subscribes to `dn/#` and publishes to `up/#` only; the broker's access list holds it to that.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from outrider.runtime.errors import BadMessageError

ROOT = "or1"
EPOCH_TOPIC = f"{ROOT}/_sys/epoch"
UP_FILTER = f"{ROOT}/+/+/up/#"

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)"  # a bare "$" would let a trailing newline pass
Identifier = Annotated[str, Meta(pattern=NAME_PATTERN)]
Direction = Literal["dn", "up"]
_NAME = re.compile(NAME_PATTERN)


def shared_up_filter(share: str) -> str:
    """What managers subscribe to, to share among them what all devices publish. Who knows the name takes a share."""
    return f"$share/{share}/{UP_FILTER}"


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """One device of one tenant."""

    tenant: Identifier
    device: Identifier

    def __post_init__(self) -> None:
        for part in (self.tenant, self.device):
            if not _NAME.match(part):
                raise BadMessageError(
                    f"{part!r} is not a tenant or device name", hint="use letters, digits, '.', '_' and '-'"
                )

    def down(self, kind: str) -> str:
        """The topic of a message to the device, for example `desired` or `blk/<sha>`."""
        return f"{ROOT}/{self.tenant}/{self.device}/dn/{kind}"

    def up(self, kind: str) -> str:
        """The topic of a message from the device, for example `presence`."""
        return f"{ROOT}/{self.tenant}/{self.device}/up/{kind}"


def parse_topic(topic: str) -> tuple[Address, Direction, str]:
    """Split a topic into address, direction and kind. Raises BadMessageError."""
    parts = topic.split("/", 4)
    if len(parts) != 5 or parts[0] != ROOT or parts[3] not in ("dn", "up") or not parts[4]:
        raise BadMessageError(f"not an Outrider topic: {topic[:200]!r}")
    direction: Direction = "dn" if parts[3] == "dn" else "up"
    return Address(tenant=parts[1], device=parts[2]), direction, parts[4]
