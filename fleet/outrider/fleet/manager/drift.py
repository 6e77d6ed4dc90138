"""Windows of counts into the drift tests: for each bundle one test a device, and one of all devices merged.

Every window is evaluated exactly once, also over restarts: how far the tests have come is kept in the same
transaction as their states. The tests of one bundle share one error probability (`streams_of`).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from functools import reduce

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from outrider.fleet import audit
from outrider.fleet.db import Database, DriftEventRow, DriftStateRow, WindowRow
from outrider.fleet.drift import DriftSignal, FeatureMonitor, MonitorState
from outrider.fleet.manager.catalogue import Catalogue
from outrider.fleet.settings import FleetSettings
from outrider.runtime.errors import BadDataError, BadMessageError, ConflictError
from outrider.runtime.profile import Baseline, Window, decode_window, merge

log = logging.getLogger(__name__)

FLEET = "fleet"
KIND = "windows"
WINDOWS_A_STEP = 256
FIRST_DEVICES = 16
_CURSOR = (":cursor", "", KIND)  # no device can be called so
_LOOK_BACK = 5000  # windows; for how many devices are active at a time

Scope = tuple[str, str]  # fleet or device, bundle


def streams_of(features: int, device: int | None) -> int:
    """N for the threshold N/alpha of one scope of a bundle, so that all scopes together stay within alpha.

    Half of alpha belongs to the fleet's test (`device` None). The other half is spent on devices in the order in
    which they appear (`device` counts from 0): blocks of 16, 32, 64, ... devices get 1/2, 1/6, 1/12, ... of it, which
    adds up to 1 however many devices there will be.
    """
    if device is None:
        return 2 * features
    block, size, first = 0, FIRST_DEVICES, 0
    while device >= first + size:
        first, block, size = first + size, block + 1, size * 2
    return 2 * features * size * (block + 1) * (block + 2)


@dataclass(frozen=True)
class Reading:
    """One window of one device, decoded. `active`: devices that counted with the same bundle at the same time."""

    device: str
    window: Window
    active: int


@dataclass
class Batch:
    """Windows past the cursor by bundle, in the order in which they came, and what is needed to evaluate them."""

    before: int
    last: int
    count: int
    readings: dict[str, list[Reading]] = field(default_factory=lambda: defaultdict(list))
    baselines: dict[str, Baseline] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    states: dict[Scope, MonitorState] = field(default_factory=dict)


class DriftEvaluator:
    """Evaluates new windows step by step. Belongs to one thread; the tests run outside any transaction."""

    def __init__(self, database: Database, settings: FleetSettings, catalogue: Catalogue) -> None:
        self._database = database
        self._settings = settings
        self._catalogue = catalogue

    def step(self, *, now: float) -> bool:
        """Evaluate the next windows. True: there are more. Raises ConflictError where another manager does too."""
        with self._database.read() as session:
            batch = self._read(session)
        if batch is None:
            return False
        signals = evaluate(batch)
        with self._database.session() as session:
            if _cursor(session) != batch.before:
                raise ConflictError("another manager evaluates the same windows")
            for (scope, bundle), state in batch.states.items():
                _save(session, scope, bundle, msgspec.msgpack.encode(state))
            for (scope, bundle), signal in signals:
                _record(session, scope, bundle, batch.models[bundle], signal, now)
            _save(session, *_CURSOR[:2], msgspec.msgpack.encode(batch.last))
        return batch.count == WINDOWS_A_STEP

    def _read(self, session: Session) -> Batch | None:
        before = _cursor(session)
        rows = session.scalars(
            select(WindowRow).where(WindowRow.id > before).order_by(WindowRow.id).limit(WINDOWS_A_STEP)
        ).all()
        if not rows:
            return None
        batch = Batch(before=before, last=rows[-1].id, count=len(rows))
        for row in rows:
            entry = self._catalogue.entry(session, row.bundle)
            if entry is None or entry.baseline is None:
                continue
            try:
                window = decode_window(row.payload, entry.baseline)
            except BadMessageError as e:
                log.warning("ignored a window of %s: %s", row.device, e)
                continue
            batch.baselines[row.bundle], batch.models[row.bundle] = entry.baseline, entry.facts.name
            batch.readings[row.bundle].append(Reading(row.device, window, _active(session, row)))
        for bundle, readings in list(batch.readings.items()):
            try:
                for scope in (FLEET, *dict.fromkeys(reading.device for reading in readings)):
                    batch.states[scope, bundle] = self._state(session, batch, scope, bundle)
            except BadDataError as e:  # one baseline that cannot be tested must not hold up the others
                log.error("the windows of bundle %s are not tested: %s", bundle[:16], e)
                del batch.readings[bundle]
        return batch

    def _state(self, session: Session, batch: Batch, scope: str, bundle: str) -> MonitorState:
        row = session.get(DriftStateRow, (scope, bundle, KIND))
        if row is not None:
            return msgspec.msgpack.decode(row.state, type=MonitorState)
        device: int | None = None
        if scope != FLEET:
            begun = select(func.count()).where(
                DriftStateRow.bundle == bundle, DriftStateRow.kind == KIND, DriftStateRow.scope != FLEET
            )
            fresh = sum(1 for name, known in batch.states if known == bundle and name != FLEET)
            device = session.scalars(begun).one() + fresh
        baseline = batch.baselines[bundle]
        features = len(baseline.features) + bool(baseline.scores)
        return FeatureMonitor.new_state(
            baseline,
            alpha=self._settings.alpha,
            streams=streams_of(features, device),
            margin=self._settings.margin,
        )


def evaluate(batch: Batch) -> list[tuple[Scope, DriftSignal]]:
    """Bring the batch's states up to date; returns what they signal. Pure but for `batch.states`."""
    signals = []
    for bundle, readings in batch.readings.items():
        for scope, window, sources in _series(readings):
            try:
                state, found = FeatureMonitor.update(batch.states[scope, bundle], window, sources=sources)
            except BadDataError as e:
                log.warning("ignored a window of %s: %s", scope, e)
                continue
            batch.states[scope, bundle] = state
            signals += [((scope, bundle), signal) for signal in found]
    return signals


def _series(readings: list[Reading]) -> list[tuple[str, Window, int]]:
    """Each device's windows, and the fleet's: the first of every device merged, then the second of each, and so on."""
    rounds: list[list[Reading]] = []
    seen: dict[str, int] = defaultdict(int)
    for reading in readings:
        turn = seen[reading.device]
        seen[reading.device] += 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(reading)
    series = [(reading.device, reading.window, 1) for reading in readings]
    for turn_readings in rounds:
        merged = reduce(merge, (reading.window for reading in turn_readings))
        active = max(reading.active for reading in turn_readings)
        series.append((FLEET, merged, max(active, len(turn_readings))))
    return series


def _active(session: Session, row: WindowRow) -> int:
    """How many devices have sent windows of the same bundle that overlap this one in time, this one's included."""
    overlapping = select(func.count(WindowRow.device.distinct())).where(
        WindowRow.bundle == row.bundle,
        WindowRow.id > row.id - _LOOK_BACK,
        WindowRow.end > row.start,
        WindowRow.start < row.end,
    )
    return max(1, session.scalars(overlapping).one())


def _cursor(session: Session) -> int:
    row = session.get(DriftStateRow, _CURSOR)
    return 0 if row is None else msgspec.msgpack.decode(row.state, type=int)


def _save(session: Session, scope: str, bundle: str, state: bytes) -> None:
    session.merge(DriftStateRow(scope=scope, bundle=bundle, kind=KIND, state=state))


def _record(session: Session, scope: str, bundle: str, model: str, signal: DriftSignal, now: float) -> None:
    """Keep a signal as an event, once for each scope, bundle and feature."""
    known = select(DriftEventRow.id).filter_by(scope=scope, bundle=bundle, feature=signal.feature)
    if session.scalars(known).first() is not None:
        return
    session.add(
        DriftEventRow(
            scope=scope,
            model=model,
            bundle=bundle,
            feature=signal.feature,
            since=signal.since,
            at=now,
            effect=signal.effect,
            e_value=signal.e_value,
            threshold=signal.threshold,
        )
    )
    audit.record(
        session,
        actor="fleet",
        action="drift.detect",
        subject=model,
        detail={"scope": scope, "bundle": bundle, **msgspec.to_builtins(signal)},
        now=now,
    )
    log.warning("%s drifted on %s: effect %.3f, e-value %.3g", signal.feature, scope, signal.effect, signal.e_value)
