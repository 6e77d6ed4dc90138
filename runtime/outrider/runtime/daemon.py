"""`outriderd`: the device's daemon. `run` is the page to read first."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.runtime import __version__
from outrider.runtime.arguments import Parser
from outrider.runtime.config import DeviceConfig, load_config
from outrider.runtime.errors import EXIT_OK, UnavailableError
from outrider.runtime.logs import set_up_logging
from outrider.runtime.notify import notify, watchdog_interval_s

if TYPE_CHECKING:
    from outrider.runtime.device import RunningDevice
    from outrider.runtime.identity import Identity

log = logging.getLogger("outrider.runtime.daemon")  # also under `python -m`


def main(argv: Sequence[str] | None = None) -> int:
    """`outriderd --config device.toml [--check]`. Errors become exit codes and one clear line."""
    from outrider.runtime.cli import guarded

    def act() -> int:
        arguments = _parser().parse_args(argv)
        config = load_config(arguments.config)
        return check(config) if arguments.check else run(config)

    return guarded(act)


def run(config: DeviceConfig) -> int:
    """Serve until SIGTERM or SIGINT, with or without a fleet. Returns 0.

    Everything that can fail for a reason of the integrator's (a second daemon, a port in use, a refused token)
    fails before the update is resumed, so that such a start never counts against a bundle.
    """
    from outrider.runtime.device import RunningDevice
    from outrider.runtime.store import Store

    started, boot_id = time.monotonic(), uuid.uuid4().hex
    tail = set_up_logging(config.log_format, config.log_level)
    with _stop_signals() as stop, contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(Store(config.state_dir)))  # one daemon a folder
        identity = _enrolled(config, stop)
        if identity is None:
            return EXIT_OK
        device = RunningDevice(config, store, identity, boot_id=boot_id, tail=tail, started=started)
        stack.callback(device.stop)
        device.listen()
        device.resume()
        device.serve()
        device.connect()
        log.info(
            "ready", extra={"boot_id": boot_id, "pid": os.getpid(), "after_s": round(time.monotonic() - started, 2)}
        )
        notify("READY=1")
        _loop(device, config, stop)
        notify("STOPPING=1")
    log.info("stopped", extra={"boot_id": boot_id})
    return EXIT_OK


def check(config: DeviceConfig) -> int:
    """`--check`: say what the daemon would do with this configuration, without doing it."""
    from outrider.runtime.identity import load_identity
    from outrider.runtime.probe import host_target

    identity, target = load_identity(config.state_dir), host_target()
    if identity is None:
        token = "with a token" if config.enrolment_token() else "without a token"
        who = f"not enrolled, {token}, fleet {config.fleet_url or 'not set'}"
    else:
        identity.trust_store()
        who = f"{identity.tenant}/{identity.device}, broker {identity.mqtt_host}:{identity.mqtt_port}"
    print(f"outriderd {__version__}: the configuration is good")
    print(f"  identity  {who}")
    print(f"  state     {config.state_dir}")
    print(f"  serves    http://{config.host}:{config.port} and {config.socket_path}")
    print(f"  machine   {target.arch}, {target.libc or 'no libc'}, {len(target.features)} instruction-set features")
    return EXIT_OK


def _enrolled(config: DeviceConfig, stop: threading.Event) -> Identity | None:
    """The device's identity, enrolling where needed; None where the daemon was stopped while it waited."""
    from outrider.runtime.enrol import enrol

    try:
        return enrol(config, stop=stop)
    except UnavailableError:
        if stop.is_set():
            return None
        raise


def _loop(device: RunningDevice, config: DeviceConfig, stop: threading.Event) -> None:
    """Send what is due and feed the watchdog until told to stop."""
    watchdog_s = watchdog_interval_s()
    next_report = time.monotonic() + config.heartbeat_s
    due_s = 0.0
    while not stop.wait(due_s):
        due_s = device.telemetry.tick()
        if time.monotonic() >= next_report:
            next_report = time.monotonic() + config.heartbeat_s
            device.publish_reported()
        if watchdog_s is not None:
            notify("WATCHDOG=1")
            due_s = min(due_s, watchdog_s)
        due_s = min(due_s, max(0.0, next_report - time.monotonic()))


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set. The drain is bounded, so further signals change nothing.

    The handler only writes to a pipe: setting an event, or logging, from a handler could meet its own lock.
    """
    stop, (reader, writer) = threading.Event(), os.pipe()

    def watch() -> None:
        number = os.read(reader, 1)[0]
        if number:
            log.info("stopping on %s", signal.Signals(number).name)
            stop.set()

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda got, _: _write_byte(writer, got)) for number in numbers}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        _write_byte(writer, 0)
        watcher.join()
        os.close(reader)
        os.close(writer)


def _write_byte(handle: int, value: int) -> None:
    os.write(handle, bytes([value]))


def _parser() -> Parser:
    parser = Parser(prog="outriderd", description="Serve models, keep them up to date, count what they see.")
    parser.add_argument("--config", type=Path, required=True, help="device.toml")
    parser.add_argument("--check", action="store_true", help="check the configuration and the machine, then exit")
    parser.add_argument("--version", action="version", version=f"outriderd {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
