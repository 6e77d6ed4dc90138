"""The manager's MQTT session: the seam around paho.

It reads what all devices publish (`Broker.up_filter`), and acknowledges a message only when told to, after
it is in the database. A resumed session has missed nothing; a fresh one reads the retained state of all devices once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from outrider.fleet.broker import MAX_PACKET_BYTES, Broker, reachable
from outrider.runtime.errors import UnavailableError
from outrider.runtime.messages import EPOCH_TOPIC, ROOT

log = logging.getLogger(__name__)

CLIENT_ID = "outrider-manager"
KEEPALIVE_S = 20
SESSION_EXPIRY_S = 24 * 3600
RECEIVE_MAXIMUM = 500  # messages that are read and not yet in the database
IN_FLIGHT = 100
RECONNECT_S = (1, 10)
# What a fresh session reads once: retained, so it tells of all that was missed.
SNAPSHOT_FILTERS = (f"{ROOT}/+/+/up/presence", f"{ROOT}/+/+/up/reported")

Done = Callable[[bool], None]


@dataclass(frozen=True)
class Incoming:
    """A message from a device. `link_number` says on which connection it came."""

    link_number: int
    mid: int
    topic: str
    payload: bytes
    again: bool


class ManagerLink:
    """Connects, and stays connected. `on_message` and `on_up` are called on paho's thread and must not block.

    `on_up(resumed)`: connected; `resumed` says whether the broker had kept our session.
    """

    def __init__(
        self, broker: Broker, *, on_message: Callable[[Incoming], None], on_up: Callable[[bool], None]
    ) -> None:
        self._broker = broker
        self._on_incoming = on_message
        self._on_up = on_up
        self._lock = threading.Lock()
        self._waiting: dict[int, Done] = {}
        self._early: dict[int, bool] = {}
        self._number = 0
        self._client = self._make_client()

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the present connection."""
        return self._client.is_connected()

    @property
    def outstanding(self) -> int:
        """Publishes that the broker has not acknowledged."""
        return len(self._waiting)

    def start(self) -> None:
        """Connect from now on. Returns at once, also while the broker is away."""
        properties = _properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        self._client.connect_async(
            reachable(self._broker.host), self._broker.port, KEEPALIVE_S, clean_start=False, properties=properties
        )
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect; the broker keeps the session, so that nothing is missed until the next start."""
        self._client.disconnect()
        self._client.loop_stop()

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None, done: Done | None = None
    ) -> None:
        """Publish at QoS 1. `done(ok)` is called once, on paho's thread, with the broker's answer.

        A publish without an answer is sent again after a reconnect. Raises UnavailableError without a connection.
        """
        if not self.connected:
            raise UnavailableError("the broker is not connected")
        properties = _properties(PacketTypes.PUBLISH)
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        info = self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        if info.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):
            raise UnavailableError(f"cannot publish: {paho.error_string(info.rc)}")
        if done is None:
            return
        # No lock may be held while paho publishes, so the answer can be here already.
        with self._lock:
            answer = self._early.pop(info.mid, None)
            if answer is None:
                self._waiting[info.mid] = done
                return
        done(answer)

    def ack(self, message: Incoming) -> None:
        """Acknowledge a message. One of an earlier connection is left alone: the broker sends it again."""
        if message.link_number == self._number:
            self._client.ack(message.mid, 1)

    def read_again(self, topic: str) -> None:
        """Have the retained message of a topic delivered now, also where it is subscribed to already."""
        self._client.unsubscribe(topic)
        self._client.subscribe(topic, qos=1)

    def end_snapshot(self) -> None:
        """Stop reading presence and state twice: the main subscription brings them too."""
        self._client.unsubscribe(list(SNAPSHOT_FILTERS))

    # paho's callbacks, on its thread --------------------------------------------------------------------------------

    def _make_client(self) -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=CLIENT_ID, protocol=paho.MQTTv5, manual_ack=True)
        client.username_pw_set(self._broker.manager_username, self._broker.manager_password)
        client.max_inflight_messages_set(IN_FLIGHT)
        client.reconnect_delay_set(*RECONNECT_S)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        return client

    def _on_connect(self, client: paho.Client, _data: Any, flags: paho.ConnectFlags, reason: Any, _props: Any) -> None:
        if reason.is_failure:
            log.error("the broker refused the manager: %s", reason)
            return
        self._number += 1
        client.subscribe(self._broker.up_filter, qos=1)
        if not flags.session_present:
            for topic_filter in SNAPSHOT_FILTERS:
                client.subscribe(topic_filter, qos=1)
        self.read_again(EPOCH_TOPIC)
        log.info("connected to the broker", extra={"resumed": flags.session_present})
        self._on_up(flags.session_present)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _props: Any) -> None:
        if reason.is_failure:
            log.warning("the manager lost the broker: %s", reason)

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _props: Any) -> None:
        for reason in reasons:
            if reason.is_failure:
                log.error("the broker refused a subscription of the manager: %s", reason)

    def _on_message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        if message.qos != 1:
            return
        try:
            topic = message.topic
        except UnicodeDecodeError:
            client.ack(message.mid, 1)
            return
        self._on_incoming(Incoming(self._number, message.mid, topic, bytes(message.payload), bool(message.dup)))

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _props: Any) -> None:
        ok = not reason.is_failure
        if not ok:
            log.error("the broker refused a publish of the manager: %s", reason)
        with self._lock:
            done = self._waiting.pop(mid, None)
            if done is None:
                self._early[mid] = ok
                while len(self._early) > 2 * IN_FLIGHT:
                    del self._early[next(iter(self._early))]
        if done is not None:
            done(ok)


def _properties(packet: int) -> Properties:
    properties: Properties = Properties(packet)  # type: ignore[no-untyped-call]
    return properties
