"""One running device: store, installer, sessions, inference API, telemetry and link, put together.

`RunningDevice` only wires; what each part does is in its own module. Nothing here waits for the fleet.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from outrider.runtime import __version__
from outrider.runtime.commands import Context, run_command
from outrider.runtime.config import DeviceConfig
from outrider.runtime.fetch import HttpSource, MqttSource, Source
from outrider.runtime.identity import Identity
from outrider.runtime.installer import Installer
from outrider.runtime.link import Handlers, Link, MqttSettings
from outrider.runtime.logs import Tail
from outrider.runtime.messages import Reported
from outrider.runtime.models import Models
from outrider.runtime.probe import host_target
from outrider.runtime.server import HttpServer, Limits, Routes
from outrider.runtime.serving import Serving
from outrider.runtime.store import Store
from outrider.runtime.telemetry import Telemetry

log = logging.getLogger(__name__)


class RunningDevice:
    """The parts of a device, started in the order `listen`, `resume`, `serve`, `connect`, ended by `stop`."""

    def __init__(
        self, config: DeviceConfig, store: Store, identity: Identity, *, boot_id: str, tail: Tail, started: float
    ) -> None:
        self._config = config
        self._store = store
        self._target = host_target()
        trust = identity.trust_store()
        self.models = Models()
        self.telemetry = Telemetry(
            store.outbox,
            boot_id=boot_id,
            next_seq=store.next_seq,
            window_s=config.window_s,
            predictions=config.predictions,
        )
        self._serving = Serving(
            self.models, self.telemetry, trust=trust, target=self._target, on_unhealthy=self._unhealthy
        )
        self._context = Context(store=store, models=self.models, tail=tail, boot_id=boot_id, started=started)
        self._link = Link(
            identity,
            store.outbox,
            boot_id=boot_id,
            settings=MqttSettings(
                keepalive_s=config.keepalive_s, backoff_s=config.backoff_s, backoff_max_s=config.backoff_max_s
            ),
        )
        self._mqtt_source = MqttSource(self._link)
        ways: dict[str, Callable[[], Source]] = {
            "http": lambda: HttpSource(identity.secret, origin=identity.api_url or None),
            "mqtt": lambda: self._mqtt_source,
        }
        self._boot_id = boot_id
        self._resumed = False
        self._installer = Installer(
            store,
            sources=[ways[name]() for name in config.transport],
            trust=trust,
            address=identity.address,
            boot_id=boot_id,
            host=self._target,
            on_active=self._serving.activate,
            on_change=self._link.publish_reported,
        )
        store.outbox.listen(self._link.wake)
        self._http = HttpServer(
            Routes(self.models, observer=self._serving),
            limits=Limits(
                body_bytes=config.max_request_bytes, request_s=config.request_s, connections=config.max_connections
            ),
        )

    def listen(self) -> None:
        """Bind the inference API. Raises PortInUseError."""
        config = self._config
        host, port = self._http.listen_tcp(config.host, config.port)
        path = self._http.listen_unix(config.socket_path)
        log.info("the inference API listens", extra={"address": f"{host}:{port}", "socket": str(path)})

    def resume(self) -> None:
        """Load what is installed, and go on with updates that a crash or power cut interrupted."""
        self._resumed = True
        self._installer.resume()

    def serve(self) -> None:
        """Answer inference requests from now on."""
        self._http.start()

    def connect(self) -> None:
        """Look for the fleet from now on; returns at once."""
        self._link.start(
            Handlers(
                desired=self._installer.offer,
                block=self._mqtt_source.deliver,
                command=partial(run_command, self._context),
                reported=self._reported,
                connected=self._installer.nudge,
            )
        )

    def publish_reported(self) -> None:
        """Tell the fleet the device's state, changed or not."""
        self._link.publish_reported()

    def stop(self) -> None:
        """Drain requests, put the last counts into the outbox, say goodbye; what was not started is left alone."""
        self._http.stop()
        if self._resumed:
            self._installer.stop()
        self.models.close()
        self.telemetry.flush()
        self._link.stop()

    def _unhealthy(self, slot: str, bundle: str, reason: str, detail: str) -> None:
        self._installer.health_failed(slot, reason, detail, bundle=bundle)

    def _reported(self) -> Reported:
        report = self._installer.report()
        return Reported(
            v=1,
            boot_id=self._boot_id,
            seq=self._store.next_seq(),
            at=time.time(),
            revision=report.revision,
            slots=report.slots,
            disk=report.disk,
            runtime=__version__,
            target=self._target,
        )
