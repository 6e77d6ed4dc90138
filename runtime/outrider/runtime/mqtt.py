"""One MQTT 5 session that keeps itself up: the seam around paho.

A network thread connects, reads and writes, and connects again with full-jitter backoff for ever. It only ever
queues signals for `sink`, so nothing that a receiver does can make it miss a keep-alive. The broker is not trusted:
whatever it sends ends at most this connection.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from outrider.runtime.backoff import Backoff
from outrider.runtime.errors import UnavailableError

log = logging.getLogger(__name__)

_TAKEN_OVER = 0x8E
_NO_SUBSCRIBERS = 0x10
_NOT_AUTHORIZED = (0x86, 0x87)
_POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class MqttSettings:
    """How the session behaves. Times are seconds, sizes bytes.

    The backoff starts again from its base only after a connection has held for `stable_s`, so that two devices
    with one identity, which throw each other out, slow down.
    """

    keepalive_s: int = 30
    backoff_s: float = 1.0
    backoff_max_s: float = 120.0
    connect_s: float = 5.0
    connack_s: float = 10.0
    stable_s: float = 30.0
    session_expiry_s: int = 24 * 3600
    receive_maximum: int = 8
    packet_bytes: int = 256 * 1024
    will_delay_s: int = 30


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Where the broker is and who connects."""

    host: str
    port: int
    client_id: str
    username: str
    password: str


@dataclass(frozen=True, kw_only=True)
class Will:
    """What the broker publishes, retained, when the connection is lost and not made again in time."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Up:
    """Connected, subscribed to nothing yet. `session` names this connection; `resumed`: the broker had kept state."""

    session: str
    resumed: bool


@dataclass(frozen=True)
class Down:
    """The connection is lost, or could not be made. `taken_over`: another client uses this identity."""

    reason: str
    taken_over: bool = False


@dataclass(frozen=True)
class Incoming:
    """A QoS 1 message, which the receiver acknowledges with `MqttSession.ack` once it is safe."""

    session: str
    mid: int
    topic: str
    payload: bytes
    correlation: bytes | None


@dataclass(frozen=True)
class Published:
    """The broker's answer to a publish. Not `ok`: it refused, or passed it to nobody; `reason` says which."""

    mid: int
    ok: bool
    reason: str


@dataclass(frozen=True)
class Subscribed:
    """The broker's answer to the subscription."""

    ok: bool
    reason: str


Signal = Up | Down | Incoming | Published | Subscribed


class MqttSession:
    """A session on the broker. `will(session)` gives the will for each new connection; `sink` must not block."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        will: Callable[[str], Will],
        sink: Callable[[Signal], None],
        settings: MqttSettings | None = None,
    ) -> None:
        self._credentials = credentials
        self._settings = settings or MqttSettings()
        self._will = will
        self._sink = sink
        self._backoff = Backoff(self._settings.backoff_s, self._settings.backoff_max_s)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._session = ""
        self._up = False
        self._down: Down | None = None
        self._client = self._make_client()

    @property
    def up(self) -> bool:
        """Whether the broker has accepted the present connection."""
        return self._up

    def start(self) -> None:
        """Connect, and stay connected, from now on."""
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect cleanly (the broker drops the will) and end the thread."""
        self._stopping.set()
        self._client.disconnect()
        if self._thread is not None:
            self._thread.join()

    def subscribe(self, topic_filter: str) -> None:
        """Subscribe at QoS 1; the answer comes as `Subscribed`."""
        self._client.subscribe(topic_filter, qos=1)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        expiry_s: int | None = None,
        correlation: bytes | None = None,
    ) -> int:
        """Publish at QoS 1 from any thread; the answer comes as `Published` with the returned id.

        Raises UnavailableError while there is no connection: what must survive belongs in the outbox.
        """
        if not self._up:
            raise UnavailableError("the broker is not connected")
        properties = _properties(PacketTypes.PUBLISH)
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        if correlation is not None:
            properties.CorrelationData = correlation
        info = self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        if info.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):
            raise UnavailableError(f"cannot publish: {paho.error_string(info.rc)}")
        return info.mid

    def ack(self, message: Incoming) -> None:
        """Acknowledge a message. One of an earlier connection is left alone: the broker sends it again."""
        if message.session == self._session and self._up:
            self._client.ack(message.mid, 1)

    # The network thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._down = None
            try:
                self._connect()
                self._serve()
            except OSError as e:
                self._down = Down(f"cannot reach {self._credentials.host}:{self._credentials.port}: {e}")
            except Exception as e:
                log.exception("the MQTT connection failed")
                self._down = Down(f"protocol error: {type(e).__name__}")
            self._up = False
            self._sink(self._down or Down("connection lost"))
            self._stopping.wait(self._backoff.next_s())

    def _connect(self) -> None:
        settings, credentials = self._settings, self._credentials
        self._session = uuid.uuid4().hex
        self._client.drop_out_messages()  # the outbox publishes again whatever was not acknowledged
        will, will_properties = self._will(self._session), _properties(PacketTypes.WILLMESSAGE)
        will_properties.WillDelayInterval = settings.will_delay_s
        self._client.will_set(will.topic, will.payload, qos=1, retain=True, properties=will_properties)
        properties = _properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = settings.session_expiry_s
        properties.ReceiveMaximum = settings.receive_maximum
        properties.MaximumPacketSize = settings.packet_bytes
        self._client.connect(
            credentials.host, credentials.port, keepalive=settings.keepalive_s, clean_start=False, properties=properties
        )

    def _serve(self) -> None:
        """Read and write until the connection ends."""
        connected = time.monotonic()
        while self._client.loop(_POLL_S) == MQTTErrorCode.MQTT_ERR_SUCCESS:
            held = time.monotonic() - connected
            if self._stopping.is_set() and self._client.disconnect() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return
            if not self._up and held > self._settings.connack_s:
                self._down = Down(f"no answer to CONNECT in {self._settings.connack_s:g} s")
                return
            if self._up and held > self._settings.stable_s:
                self._backoff.reset()

    # paho's callbacks, on the network thread --------------------------------------------------------------------

    def _make_client(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._credentials.client_id,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.username_pw_set(self._credentials.username, self._credentials.password)
        client.connect_timeout = self._settings.connect_s
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        # With this set paho leaves all writing to `loop`, hence to one thread, whoever publishes.
        client.on_socket_register_write = _leave_to_the_loop
        return client

    def _on_connect(self, _client: Any, _data: Any, flags: paho.ConnectFlags, reason: ReasonCode, _props: Any) -> None:
        if reason.is_failure:
            hint = ": are the device's credentials revoked?" if reason.value in _NOT_AUTHORIZED else ""
            self._down = Down(f"the broker refused the connection ({reason}){hint}")
            return
        self._up = True
        self._sink(Up(self._session, flags.session_present))

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _props: Any) -> None:
        self._up = False
        if self._down is None:
            self._down = Down(f"connection lost ({reason})", taken_over=reason.value == _TAKEN_OVER)

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        if message.qos != 1:  # all of ours are QoS 1; others would not be held back by the receive maximum
            return
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        correlation = getattr(message.properties, "CorrelationData", None)
        self._sink(Incoming(self._session, message.mid, topic, bytes(message.payload), correlation))

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _props: Any) -> None:
        # "No matching subscribers" is a success to MQTT, but then nobody has the message.
        self._sink(Published(mid, not reason.is_failure and reason.value != _NO_SUBSCRIBERS, str(reason)))

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _props: Any) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        self._sink(Subscribed(not refused, ", ".join(refused)))


def _properties(packet: int) -> Properties:
    properties: Properties = Properties(packet)  # type: ignore[no-untyped-call]
    return properties


def _leave_to_the_loop(_client: paho.Client, _data: Any, _socket: Any) -> None:
    return None
