"""Bundle bytes as blocks over MQTT, for sites where nothing but the broker can be reached."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from outrider.runtime.errors import UnavailableError
from outrider.runtime.fetch.blocks import BlockFile
from outrider.runtime.fetch.source import Stop
from outrider.runtime.messages import Block, BlockRequest, SlotDesired

WINDOW = 8
"""Blocks asked for and not yet received; no more than the connection's receive maximum."""
BLOCK_TIMEOUT_S = 10.0
"""After this a block is asked for again."""
SILENCE_S = 45.0
"""After this without any block the fleet counts as away."""
_POLL_S = 0.25


class BlockChannel(Protocol):
    """How block requests leave the device: the link."""

    def request(self, request: BlockRequest) -> None:
        """Publish a request. Raises UnavailableError where there is no connection."""


class MqttSource:
    """Asks for blocks over `channel`; the link hands in what arrives by `deliver`, from its own thread."""

    name = "mqtt"

    def __init__(
        self,
        channel: BlockChannel,
        *,
        window: int = WINDOW,
        block_timeout_s: float = BLOCK_TIMEOUT_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._channel = channel
        self._window = window
        self._block_timeout_s = block_timeout_s
        self._silence_s = silence_s
        self._lock = threading.Lock()
        self._inboxes: dict[str, queue.Queue[Block]] = {}

    def deliver(self, sha256: str, block: Block) -> None:
        """Take a block that arrived. One that nobody waits for, or one too many, is dropped."""
        with self._lock:
            inbox = self._inboxes.get(sha256)
        if inbox is not None:
            with contextlib.suppress(queue.Full):
                inbox.put_nowait(block)

    def fetch(self, wanted: SlotDesired, blocks: BlockFile, stop: Stop) -> None:
        """Write the missing blocks, `window` of them on the way at any time."""
        with self._inbox(wanted.bundle) as inbox:
            self._pull(wanted.bundle, blocks, inbox, stop)

    def _pull(self, sha256: str, blocks: BlockFile, inbox: queue.Queue[Block], stop: Stop) -> None:
        missing = dict.fromkeys(blocks.missing())
        asked: dict[int, float] = {}
        heard = time.monotonic()
        while missing and not stop():
            now = time.monotonic()
            if now - heard > self._silence_s:
                raise UnavailableError(f"no block arrived for {self._silence_s:.0f} s")
            asked = {index: at for index, at in asked.items() if now - at < self._block_timeout_s}
            if len(asked) <= self._window // 2:
                self._ask(sha256, missing, asked, now)
            try:
                block = inbox.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if block.index in missing and len(block.data) == blocks.length(block.index):
                blocks.write(block.index, block.data)
                del missing[block.index]
                asked.pop(block.index, None)
                heard = time.monotonic()

    def _ask(self, sha256: str, missing: dict[int, None], asked: dict[int, float], now: float) -> None:
        """Fill the window with the first missing blocks, one request a run of neighbours."""
        room = self._window - len(asked)
        run: list[int] = []
        for index in missing:
            if room == 0:
                break
            if index in asked:
                continue
            if run and index != run[-1] + 1:
                self._request(sha256, run)
                run = []
            run.append(index)
            asked[index] = now
            room -= 1
        if run:
            self._request(sha256, run)

    def _request(self, sha256: str, run: list[int]) -> None:
        self._channel.request(BlockRequest(v=1, sha256=sha256, index=run[0], n=len(run)))

    @contextlib.contextmanager
    def _inbox(self, sha256: str) -> Iterator[queue.Queue[Block]]:
        inbox: queue.Queue[Block] = queue.Queue(maxsize=4 * self._window)
        with self._lock:
            self._inboxes[sha256] = inbox
        try:
            yield inbox
        finally:
            with self._lock:
                del self._inboxes[sha256]
