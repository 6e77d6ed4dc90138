"""iotcore, the Python package of rumqttd: the broker where Mosquitto is not installed.

It has no accounts and no access list, so it listens on 127.0.0.1 and nowhere else, and it keeps nothing over a
restart: the manager publishes every desired document again when it finds its sentinel gone.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import ClassVar

from outrider.fleet.broker import LOOPBACK, MAX_PACKET_BYTES, Kind
from outrider.fleet.broker.connack import ACCEPTED, connect_reason
from outrider.fleet.broker.supervise import Supervisor
from outrider.runtime.durable import write_file
from outrider.runtime.errors import BadConfigError
from outrider.runtime.messages import UP_FILTER

log = logging.getLogger(__name__)

# rumqttd keeps what absent sessions have not read in a log a subscription: at most 10 segments of 4 MiB.
_CONFIGURATION = """\
# Written at every start; changes made here are lost.
id = 0

[router]
id = 0
max_connections = 20000
max_outgoing_packet_count = 200
max_segment_size = 4194304
max_segment_count = 10

[v5.1]
name = "outrider"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = {packet}
max_inflight_count = 100
dynamic_filters = true
"""


class IotcoreBroker:
    """iotcore as a supervised child on 127.0.0.1, with no isolation between its clients."""

    kind: ClassVar[Kind] = "iotcore"
    isolates: ClassVar[bool] = False

    def __init__(self, folder: Path, host: str, port: int) -> None:
        if host != LOOPBACK:
            raise BadConfigError(
                f"iotcore has no access control and may listen on {LOOPBACK} only, not on {host}",
                hint="install Mosquitto to reach devices on other machines",
            )
        self.host = host
        self.port = port
        self.manager_username = "outrider-manager"
        self.manager_password = ""
        # Not a shared subscription: rumqttd 0.20 panics ("group must exists") when the only member of a group loses its
        # connection with messages unacknowledged, and then answers nobody.
        self.up_filter = UP_FILTER
        self._folder = folder.resolve()
        self._configuration = self._folder / "iotcore.toml"
        self._supervisor = Supervisor(
            "iotcore",
            [sys.executable, "-m", __name__, str(self._configuration)],
            output=self._folder / "output.log",
            ready=self._answers,
        )

    @classmethod
    def available(cls) -> bool:
        """Whether the package is installed."""
        return importlib.util.find_spec("iotcore") is not None

    @property
    def generation(self) -> int:
        """How many times the broker was restarted since `start`."""
        return self._supervisor.generation

    @property
    def pid(self) -> int | None:
        """The broker's process id."""
        return self._supervisor.pid

    def start(self) -> None:
        """Write the configuration, start, and wait until it answers."""
        text = _CONFIGURATION.format(host=self.host, port=self.port, packet=MAX_PACKET_BYTES)
        write_file(self._configuration, text.encode(), mode=0o600)
        log.warning(
            "the broker is iotcore: it checks no password and no topic, so any program on this machine can read and "
            "forge messages; install Mosquitto to isolate devices"
        )
        self._supervisor.start()

    def stop(self) -> None:
        """Stop the broker; everything it held is gone."""
        self._supervisor.stop()

    def add_device(self, username: str, password: str) -> None:
        """Nothing to do: every local client may connect."""

    def remove_device(self, username: str) -> None:
        """Nothing to do: the broker cannot refuse a client. The API still refuses the device's secret."""

    def _answers(self) -> bool:
        reason = connect_reason(
            self.host, self.port, client_id="outrider-witness", username=self.manager_username, password=""
        )
        return reason == ACCEPTED


def main(configuration: str) -> None:
    """Run the broker in this process until it is terminated."""
    from iotcore import Broker

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # rumqttd wraps each packet in an error-level span, so its own level would log all traffic.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    Broker(config_path=configuration).run_forever()


if __name__ == "__main__":
    main(sys.argv[1])
