"""The device's side of the MQTT contract: presence, desired state, blocks, commands, and the outbox.

Two threads: `mqtt` moves packets (see `outrider.runtime.mqtt`), `link` does everything that may touch the disk, one
signal at a time. A message to the device is acknowledged only after its handler has returned, so after it is
durable; a message from the outbox is done only when the broker has acknowledged it, with somebody subscribed. Either
may therefore be seen twice, and never lost.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from outrider.runtime.errors import BadMessageError, Fault, OutriderError, UnavailableError
from outrider.runtime.identity import Identity
from outrider.runtime.messages import (
    KINDS,
    Block,
    BlockRequest,
    Presence,
    Reply,
    Reported,
    decode,
    encode,
    parse_topic,
)
from outrider.runtime.mqtt import (
    Credentials,
    Down,
    Incoming,
    MqttSession,
    MqttSettings,
    Published,
    Signal,
    Subscribed,
    Up,
    Will,
)

log = logging.getLogger(__name__)

_WINDOW = 8  # outbox messages on the way at once
_POLL_S = 5.0  # how long an outbox message that nobody announced may wait
_RETRY_S = 15.0  # after the broker did not take a message, or the disk did not take a desired document
_MIN_EXPIRY_S = 60
# A broker that does not know this device's session may have lost the fleet's as well, and would acknowledge messages
# that nobody gets. A desired document shows that the fleet is back; without one the outbox waits this long.
_STRANGE_BROKER_S = 30.0


class OutMessage(Protocol):
    """A message that waits in the outbox. `expires` is in seconds since the epoch, or None."""

    @property
    def id(self) -> int:
        """Rises with each message."""

    @property
    def kind(self) -> str:
        """A key of `outrider.runtime.messages.KINDS`."""

    @property
    def payload(self) -> bytes:
        """The encoded message."""

    @property
    def expires(self) -> float | None:
        """When it is no longer of use."""


class Outbox(Protocol):
    """The durable queue to the fleet: `outrider.runtime.store.outbox.Outbox`."""

    def pending(self, limit: int = ..., /) -> Iterable[OutMessage]:
        """The messages to send next, of those that are not done."""

    def done(self, /, *ids: int) -> None:
        """The broker has them: forget them."""


@dataclass(frozen=True, kw_only=True)
class Handlers:
    """Who takes what arrives, each called on the `link` thread.

    `desired` returns once the document is durable or refused; a Fault makes the link offer it again. `command`
    returns the body of the reply. `reported` is the state to publish. `connected` is told of every new connection.
    """

    desired: Callable[[bytes], None]
    block: Callable[[str, Block], None]
    command: Callable[[str, bytes], dict[str, str]]
    reported: Callable[[], Reported]
    connected: Callable[[], None] = lambda: None


class _Wake:
    """There is something to publish."""


class _Leave:
    """Say goodbye and end."""


class Link:
    """Keeps the device in touch with its fleet. It is also the `BlockChannel` of `fetch.MqttSource`."""

    def __init__(
        self,
        identity: Identity,
        outbox: Outbox,
        *,
        boot_id: str,
        settings: MqttSettings | None = None,
    ) -> None:
        self._address = identity.address
        self._outbox = outbox
        self._handlers: Handlers
        self._boot_id = boot_id
        self._queue: queue.SimpleQueue[Signal | _Wake | _Leave] = queue.SimpleQueue()
        self._mqtt = MqttSession(_credentials(identity), will=self._will, sink=self._queue.put, settings=settings)
        self._thread: threading.Thread | None = None
        self._left = threading.Event()
        # The rest belongs to the link thread.
        self._session: str | None = None
        self._on_the_way: dict[int, int] = {}  # MQTT message id -> outbox id
        self._hold_until = 0.0
        self._quiet_until = 0.0
        self._held: Incoming | None = None
        self._report = False
        self._trouble = ""
        self._goodbye: int | None = None

    @property
    def online(self) -> bool:
        """Whether the broker has accepted the present connection."""
        return self._mqtt.up

    def start(self, handlers: Handlers) -> None:
        """Connect, and stay in touch, from now on. Returns at once, also while the broker is away."""
        self._handlers = handlers
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()
        self._mqtt.start()

    def stop(self, *, goodbye_s: float = 2.0) -> None:
        """Publish that the device goes offline, wait for that up to `goodbye_s`, and disconnect."""
        if self._thread is None:
            return
        self._queue.put(_Leave())
        self._left.wait(goodbye_s)
        self._mqtt.stop()
        self._left.set()
        self._queue.put(_Wake())
        self._thread.join()

    def wake(self) -> None:
        """The outbox has new messages."""
        self._queue.put(_Wake())

    def publish_reported(self) -> None:
        """The reported state has changed: publish it soon; several calls become one message."""
        self._report = True
        self._queue.put(_Wake())

    def request(self, request: BlockRequest) -> None:
        """Ask the fleet for blocks of a bundle. Raises UnavailableError while there is no connection."""
        kind = KINDS["blk-request"]
        self._mqtt.publish(self._address.up("blk"), encode(request), expiry_s=kind.expiry_s)

    # The link thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._left.is_set():
            try:
                signal = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                signal = _Wake()
            try:
                self._take(signal)
                self._work()
            except UnavailableError as e:
                log.debug("not sent: %s", e.message)  # the connection went; what matters is sent after the next one
            except Fault as e:
                log.error("the link met a fault, it goes on: %s", e)
                self._hold_until = time.monotonic() + _RETRY_S
            except Exception:
                log.exception("the link failed on %s, it goes on", type(signal).__name__)

    def _take(self, signal: Signal | _Wake | _Leave) -> None:
        if isinstance(signal, Incoming):
            self._receive(signal)
        elif isinstance(signal, Published):
            self._settle(signal)
        elif isinstance(signal, Up):
            self._greet(signal)
        elif isinstance(signal, Subscribed):
            if not signal.ok:
                log.error("the broker refused the subscription: %s", signal.reason)
        elif isinstance(signal, Down):
            self._lose(signal)
        elif isinstance(signal, _Leave):
            self._leave()

    def _work(self) -> None:
        """What is due: a desired document to offer again, the reported state, the outbox."""
        now = time.monotonic()
        if self._held is not None and now >= self._hold_until:
            self._offer(self._held)
        if self._session is None or self._goodbye is not None:
            return
        if self._report:
            self._report = False
            self._publish_reported()
        if now >= max(self._hold_until, self._quiet_until):
            self._drain()

    def _greet(self, up: Up) -> None:
        log.info("connected to the broker", extra={"session": up.session, "resumed": up.resumed})
        self._forget_connection()
        self._trouble = ""
        self._session = up.session
        self._hold_until = 0.0
        self._quiet_until = 0.0 if up.resumed else time.monotonic() + _STRANGE_BROKER_S
        self._mqtt.subscribe(self._address.down("#"))
        self._publish_presence(up.session, online=True)
        self._report = True
        self._handlers.connected()

    def _lose(self, down: Down) -> None:
        if down.taken_over:
            log.error("another device connected with this identity", extra={"reason": down.reason})
        else:  # a device may be offline for weeks: say each reason once, until it was connected again
            log.log(
                logging.DEBUG if down.reason == self._trouble else logging.WARNING, "not connected: %s", down.reason
            )
        self._trouble = down.reason
        self._forget_connection()

    def _forget_connection(self) -> None:
        """Whatever was on the way is pending again, and unacknowledged messages come again."""
        self._session = None
        self._on_the_way.clear()
        self._held = None

    def _leave(self) -> None:
        if self._session is None:
            self._left.set()
            return
        if time.monotonic() >= max(self._hold_until, self._quiet_until):
            self._drain()
        self._goodbye = self._publish_presence(self._session, online=False)

    def _settle(self, published: Published) -> None:
        if published.mid == self._goodbye:
            self._left.set()
            return
        message_id = self._on_the_way.pop(published.mid, None)
        if message_id is None:
            return
        if published.ok:
            self._outbox.done(message_id)
        else:
            log.warning("the broker did not take a message, it is sent again: %s", published.reason)
            self._hold_until = time.monotonic() + _RETRY_S

    def _drain(self) -> None:
        """Publish the messages that wait longest, with no more than `_WINDOW` on the way at once."""
        sent = set(self._on_the_way.values())
        room = _WINDOW - len(sent)
        if room < _WINDOW // 2:
            return
        for message in [one for one in self._outbox.pending(_WINDOW + len(sent)) if one.id not in sent][:room]:
            mid = self._mqtt.publish(
                self._address.up(message.kind), message.payload, expiry_s=_expiry_s(message, time.time())
            )
            self._on_the_way[mid] = message.id

    def _publish_presence(self, session: str, *, online: bool) -> int:
        payload = encode(_presence(self._boot_id, session, online=online))
        return self._mqtt.publish(self._address.up("presence"), payload, retain=True)

    def _publish_reported(self) -> None:
        self._mqtt.publish(self._address.up("reported"), encode(self._handlers.reported()), retain=True)

    def _will(self, session: str) -> Will:
        # Called on the mqtt thread: touches nothing of the link thread's.
        payload = encode(_presence(self._boot_id, session, online=False))
        return Will(topic=self._address.up("presence"), payload=payload)

    # What arrives -------------------------------------------------------------------------------------------------

    def _receive(self, message: Incoming) -> None:
        try:
            address, direction, kind = parse_topic(message.topic)
            if address != self._address or direction != "dn":
                raise BadMessageError(f"not for this device: {message.topic[:200]!r}")
            if kind == "desired":
                self._offer(message)  # acknowledges by itself
                return
            self._handle(kind, message)
        except BadMessageError as e:
            log.warning("ignored a message: %s", e)
        self._mqtt.ack(message)

    def _handle(self, kind: str, message: Incoming) -> None:
        group, _, name = kind.partition("/")
        if group == "blk":
            self._handlers.block(name, decode(message.payload, Block))
        elif group == "cmd":
            self._command(name, message)
        else:
            raise BadMessageError(f"there is no message {kind[:200]!r}")

    def _offer(self, message: Incoming) -> None:
        """Hand a desired document over; keep it, unacknowledged, while the disk fails."""
        self._held = None
        if message.payload:  # an empty one clears the retained document: there is nothing to apply
            self._quiet_until = 0.0
            try:
                self._handlers.desired(message.payload)
            except Fault as e:
                log.error("a desired document could not be taken in, it is tried again: %s", e)
                self._held, self._hold_until = message, time.monotonic() + _RETRY_S
                return
            except OutriderError as e:
                log.info("did not take up a desired document: %s", e)  # the installer counts and reports it
        self._mqtt.ack(message)

    def _command(self, name: str, message: Incoming) -> None:
        """Run a command and reply on `up/rsp`, never on a topic that the message names: that is not signed."""
        if message.correlation is None:
            raise BadMessageError(f"the command {name[:64]!r} has no correlation data")
        try:
            body, ok = self._handlers.command(name, message.payload), True
        except OutriderError as e:
            body, ok = {"error": str(e)}, False
        reply = Reply(v=1, id=message.correlation.decode("utf-8", "replace"), ok=ok, body=body)
        self._mqtt.publish(
            self._address.up("rsp"), encode(reply), expiry_s=_MIN_EXPIRY_S, correlation=message.correlation
        )


def _credentials(identity: Identity) -> Credentials:
    return Credentials(
        host=identity.mqtt_host,
        port=identity.mqtt_port,
        client_id=identity.client_id,
        username=identity.mqtt_username,
        password=identity.mqtt_password,
    )


def _presence(boot_id: str, session: str, *, online: bool) -> Presence:
    return Presence(v=1, boot_id=boot_id, session=session, online=online, at=time.time())


def _expiry_s(message: OutMessage, now: float) -> int | None:
    """What is left of a message's life, within its kind's bounds: a clock that jumped must not throw data away."""
    longest = KINDS[message.kind].expiry_s
    if longest is None or message.expires is None:
        return longest
    return int(min(max(message.expires - now, _MIN_EXPIRY_S), longest))


__all__ = ["Handlers", "Link", "MqttSettings", "OutMessage", "Outbox"]
