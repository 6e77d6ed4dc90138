"""From what was served to what the fleet learns: profile windows and predictions, by way of the outbox.

The serving threads only count and append; `Telemetry.tick`, called by the daemon's loop, writes to the disk.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadDataError, StorageError
from outrider.runtime.messages import Prediction, Predictions, Stat, encode
from outrider.runtime.profile import Baseline, Counter, ProfileTap, encode_window, score_bin, scores_of

log = logging.getLogger(__name__)

Array = NDArray[Any]

PREDICTIONS_PER_MESSAGE = 250
PREDICTIONS_FLUSH_S = 5.0
MAX_WAITING_PREDICTIONS = 20_000


class Spool(Protocol):
    """Where messages wait for the broker: `outrider.runtime.store.outbox.Outbox`."""

    def put(self, kind: str, payload: bytes, /) -> None:
        """Keep a message until the broker has it. Raises StorageError."""


class Meter:
    """Counts what one bundle in one slot serves. It is the session's tap where the bundle has a baseline."""

    def __init__(self, slot: str, sha256: str, baseline: Baseline | None, *, started: float) -> None:
        self.slot = slot
        self.sha256 = sha256
        self.baseline = baseline
        self.counter = None if baseline is None else Counter(baseline)
        self.window_start = started
        self.predictions: collections.deque[Prediction] = collections.deque(maxlen=MAX_WAITING_PREDICTIONS)
        self.predictions_lost = 0
        self._tap = None if self.counter is None else ProfileTap(self.counter)
        self._complained = False

    def observe(self, features: NDArray[np.float32], outputs: Mapping[str, Array]) -> None:
        """Count rows. A row that does not fit the baseline is served all the same."""
        if self._tap is None:
            return
        try:
            self._tap.observe(features, outputs)
        except BadDataError as e:
            if not self._complained:
                self._complained = True
                log.error("slot %s: rows do not fit the bundle's baseline and are not counted: %s", self.slot, e)

    def remember(self, prediction: Prediction) -> None:
        """Keep a prediction for the next flush; the oldest gives way when far too many wait."""
        if len(self.predictions) == MAX_WAITING_PREDICTIONS:
            self.predictions_lost += 1
        self.predictions.append(prediction)


class Telemetry:
    """All meters of this process, and when their counts are sent.

    `next_seq` numbers the messages of this boot. `clock` is the time of day; windows are timed by a monotonic clock,
    so a jump of the time of day makes no window longer.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        boot_id: str,
        next_seq: Callable[[], int],
        window_s: float,
        predictions: bool,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool = spool
        self._boot_id = boot_id
        self._next_seq = next_seq
        self._window_s = window_s
        self._keep_predictions = predictions
        self._clock = clock
        self._monotonic = monotonic
        self._meters: list[Meter] = []
        self._lock = threading.Lock()  # of the list of meters
        self._flush_lock = threading.Lock()  # one flush at a time, so that windows do not overlap
        self._next_window = monotonic() + window_s
        self._next_predictions = monotonic() + PREDICTIONS_FLUSH_S

    def attach(self, slot: str, sha256: str, baseline: Baseline | None) -> Meter:
        """A meter for a bundle that begins to serve."""
        meter = Meter(slot, sha256, baseline, started=self._clock())
        with self._lock:
            self._meters.append(meter)
        return meter

    def detach(self, meter: Meter) -> None:
        """The bundle has served its last request: send what is left."""
        with self._lock:
            if meter in self._meters:
                self._meters.remove(meter)
        with self._flush_lock:
            self._flush_window(meter)
            self._flush_predictions(meter)

    def record(self, meter: Meter, ids: Sequence[str], outputs: Mapping[str, Array], predict: str) -> None:
        """Keep the prediction of each row that has an id. `predict` names the model's main output."""
        if not ids or not self._keep_predictions:
            return
        values, bins, now = _values(outputs, predict), _score_bins(outputs, len(ids)), self._clock()
        for row_id, value, score in zip(ids, values, bins, strict=True):
            meter.remember(Prediction(id=row_id, score_bin=score, prediction=value, at=now))

    def tick(self) -> float:
        """Send what is due; returns after how many seconds something is due again."""
        now = self._monotonic()
        windows, predictions = now >= self._next_window, now >= self._next_predictions
        if windows:
            self._next_window = now + self._window_s
        if predictions:
            self._next_predictions = now + PREDICTIONS_FLUSH_S
        if windows or predictions:
            self.flush(windows=windows)
        return max(0.0, min(self._next_window, self._next_predictions) - self._monotonic())

    def flush(self, *, windows: bool = True) -> None:
        """Send the predictions, and with `windows` the present windows, without waiting for them to be due."""
        with self._lock:
            meters = list(self._meters)
        with self._flush_lock:
            for meter in meters:
                self._flush_predictions(meter)
                if windows:
                    self._flush_window(meter)

    def _flush_window(self, meter: Meter) -> None:
        start, end = meter.window_start, self._clock()
        meter.window_start = end
        if meter.counter is None or meter.baseline is None or meter.counter.rows == 0:
            return
        window = meter.counter.take(start, max(start, end))
        stat = Stat(
            v=1,
            boot_id=self._boot_id,
            seq=self._next_seq(),
            slot=meter.slot,
            bundle=meter.sha256,
            start=window.start,
            end=window.end,
            rows=window.rows,
            window=encode_window(window, meter.baseline),
        )
        self._put("stat", encode(stat))

    def _flush_predictions(self, meter: Meter) -> None:
        if meter.predictions_lost:
            log.warning("slot %s: %d predictions were not kept", meter.slot, meter.predictions_lost)
            meter.predictions_lost = 0
        waiting = len(meter.predictions)  # others may append meanwhile: those are for the next flush
        while waiting > 0:
            batch = tuple(meter.predictions.popleft() for _ in range(min(waiting, PREDICTIONS_PER_MESSAGE)))
            waiting -= len(batch)
            message = Predictions(
                v=1,
                boot_id=self._boot_id,
                seq=self._next_seq(),
                slot=meter.slot,
                bundle=meter.sha256,
                predictions=batch,
            )
            self._put("pred", encode(message))

    def _put(self, kind: str, payload: bytes) -> None:
        try:
            self._spool.put(kind, payload)
        except StorageError as e:  # serving matters more than counting
            log.error("a %s message is lost: %s", kind, e)


def _values(outputs: Mapping[str, Array], predict: str) -> list[int | float | str]:
    """What was predicted for each row: the label, else the main output, of a matrix the column of the largest."""
    found = outputs.get("label", outputs[predict])
    if found.ndim > 1:
        flat = found.reshape(len(found), -1)
        found = flat[:, 0] if flat.shape[1] == 1 else flat.argmax(axis=1)
    values: list[int | float | str] = [
        int(value) if isinstance(value, bool) else value if isinstance(value, int | float | str) else str(value)
        for value in found.tolist()
    ]
    return values


def _score_bins(outputs: Mapping[str, Array], rows: int) -> list[int]:
    """The score bin of each row; 0 for models that have no score."""
    scores = scores_of(outputs)
    if scores is None:
        return [0] * rows
    return [score_bin(float(score)) for score in scores]
