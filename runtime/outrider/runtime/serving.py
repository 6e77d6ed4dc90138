"""From a bundle on disk to a live session: verified, loaded, counted, put into its slot."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from outrider.runtime.bundle import Bundle, open_bundle
from outrider.runtime.choice import recall_choice
from outrider.runtime.errors import BadInputError, EngineFault
from outrider.runtime.models import Live, Models
from outrider.runtime.profile import Baseline, decode_baseline
from outrider.runtime.session import load
from outrider.runtime.target import Target
from outrider.runtime.telemetry import Telemetry
from outrider.runtime.trust import TrustStore

log = logging.getLogger(__name__)

Array = NDArray[Any]

# So many engine failures in a row mean that the bundle does not work here; a served request starts the count again.
FAULTS_IN_A_ROW = 3


class Serving:
    """Puts bundles into service. It observes what is served, and tells
    `on_unhealthy(slot, bundle, reason, detail)` of a bad bundle."""

    def __init__(
        self,
        models: Models,
        telemetry: Telemetry,
        *,
        trust: TrustStore,
        target: Target,
        on_unhealthy: Callable[[str, str, str, str], None],
    ) -> None:
        self._models = models
        self._telemetry = telemetry
        self._trust = trust
        self._target = target
        self._on_unhealthy = on_unhealthy
        self._faults: dict[str, int] = {}  # slot -> engine failures in a row
        self._lock = threading.Lock()

    def activate(self, slot: str, path: Path | None) -> None:
        """Serve this bundle in the slot from the next request on, by the artifact that its probe kept; None: serve
        nothing there.

        Raises what `load` raises; then the slot goes on with what it had.
        """
        if path is None:
            self._models.remove(slot)
            return
        bundle = open_bundle(path)
        if self._models.sha256(slot) == bundle.sha256:
            return
        meter = self._telemetry.attach(slot, bundle.sha256, _baseline(bundle))
        choice = recall_choice(path, slot, bundle.manifest)
        try:
            session = load(
                path,
                self._trust,
                tap=meter if meter.counter is not None else None,
                target=self._target,
                prefer=None if choice is None else choice.candidate,
                only=None if choice is None else choice.sound,
            )
        except BaseException:
            self._telemetry.detach(meter)
            raise
        with self._lock:
            self._faults[slot] = 0
        self._models.put(
            Live(slot, bundle.sha256, session, meter=meter, on_closed=lambda: self._telemetry.detach(meter))
        )
        manifest = bundle.manifest
        log.info(
            "slot %s serves %s %s",
            slot,
            manifest.name,
            manifest.version,
            extra={"bundle": bundle.sha256[:16], "artifact": session.artifact.candidate},
        )

    # What the server tells -----------------------------------------------------------------------------------------

    def served(self, live: Live, ids: Sequence[str], outputs: Mapping[str, Array]) -> None:
        """Rows were predicted: keep those with an id."""
        if self._faults.get(live.slot):
            with self._lock:
                self._faults[live.slot] = 0
        if live.meter is not None:
            self._telemetry.record(live.meter, ids, outputs, live.manifest.signature.predict)

    def failed(self, live: Live, error: EngineFault) -> None:
        """The engine failed: after several times in a row the bundle is unhealthy."""
        if self._models.sha256(live.slot) != live.sha256:
            return  # a bundle that was replaced meanwhile
        with self._lock:
            self._faults[live.slot] = count = self._faults.get(live.slot, 0) + 1
        if count == FAULTS_IN_A_ROW:
            log.error("slot %s: the engine failed %d times in a row: %s", live.slot, count, error)
            self._on_unhealthy(live.slot, live.sha256, "engine-fault", str(error))


def _baseline(bundle: Bundle) -> Baseline | None:
    """The bundle's baseline, where it has one that fits its model; without it the bundle serves uncounted."""
    manifest = bundle.manifest
    inputs = manifest.signature.inputs
    if manifest.baseline is None:
        return None
    try:
        baseline = decode_baseline(bundle.read(manifest.baseline))
    except BadInputError as e:
        log.error("the bundle's baseline is not usable, what it serves is not counted: %s", e)
        return None
    if len(inputs) != 1 or inputs[0].dtype != "float32" or inputs[0].shape != (None, len(baseline.features)):
        log.error("the bundle's baseline does not fit its model, what it serves is not counted")
        return None
    return baseline
