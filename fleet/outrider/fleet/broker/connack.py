"""One MQTT 5 CONNECT by hand: does the broker answer, and does it accept these credentials?

An MQTT client library would retry, keep threads and hide the reason; readiness wants one question and one answer.
"""

from __future__ import annotations

import socket
import struct

ACCEPTED = 0x00
_TIMEOUT_S = 2.0
_CONNACK = 0x20
_USER_AND_PASSWORD_AND_CLEAN_START = 0b1100_0010
_DISCONNECT = b"\xe0\x00"


def connect_reason(host: str, port: int, *, client_id: str, username: str, password: str) -> int | None:
    """The reason code of the CONNACK (0 accepts; MQTT 5 section 3.2.2.2), or None where nothing answers."""
    body = (
        _text("MQTT")
        + struct.pack(">BBH", 5, _USER_AND_PASSWORD_AND_CLEAN_START, 10)
        + b"\x00"
        + _text(client_id)
        + _text(username)
        + _text(password)
    )
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as link:
            link.sendall(b"\x10" + _length(len(body)) + body)
            answer = link.recv(64)
            if len(answer) < 4 or answer[0] != _CONNACK:
                return None
            link.sendall(_DISCONNECT)
            return answer[3]
    except OSError:
        return None


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack(">H", len(data)) + data


def _length(value: int) -> bytes:
    encoded = bytearray()
    while True:
        value, digit = divmod(value, 128)
        encoded.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(encoded)
