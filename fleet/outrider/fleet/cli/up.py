"""`outrider up`: the fleet on this machine, until Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from outrider.fleet.service import Fleet, Interrupted, running
from outrider.fleet.settings import load_settings
from outrider.runtime.arguments import Parser
from outrider.runtime.errors import EXIT_INTERRUPTED, EXIT_OK, UnavailableError

_FLAGS = ("data_dir", "database", "host", "port", "public_url", "tenant", "broker", "broker_host", "broker_port")


def main(argv: Sequence[str]) -> int:
    """Run broker, manager and API until SIGINT or SIGTERM; no process is left behind."""
    arguments = _parser().parse_args(argv)
    settings = load_settings(arguments.config, overrides={name: getattr(arguments, name) for name in _FLAGS})
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    console = Console(highlight=False)
    with _stop_signals() as stop:
        try:
            with running(
                settings,
                publisher_keys=arguments.publisher_key,
                stop=stop.event,
                progress=lambda step: console.print(f"[dim]{step}[/dim]"),
            ) as fleet:
                announce(console, fleet)
                while not stop.event.wait(1.0):
                    if not fleet.server.alive:
                        raise UnavailableError("the HTTP server ended by itself")
                console.print("[dim]stopping[/dim]")
        except Interrupted:
            pass
    return EXIT_INTERRUPTED if stop.number == signal.SIGINT else EXIT_OK


def announce(console: Console, fleet: Fleet) -> None:
    """Say where everything is, and the API key, if this start made it."""
    folder = fleet.settings.data_dir
    console.print("[bold]The fleet is up.[/bold]")
    console.print(f"  API     {fleet.url}  (documentation at {fleet.url}/docs)", soft_wrap=True)
    console.print(f"  broker  {fleet.broker_kind} at {fleet.broker_address}", soft_wrap=True)
    console.print(f"  data    {folder}", soft_wrap=True)
    if fleet.new_admin_key is not None:
        console.print(f"  key     {fleet.new_admin_key}", soft_wrap=True)
        console.print(f"          shown only now; commands here read it from {folder / 'admin.key'}", soft_wrap=True)
    if not fleet.publishers:
        console.print("[yellow]No publisher is trusted yet, so nothing can be published.[/yellow]")
        console.print("  outrider keys init, then outrider up --publisher-key publisher.pub")


class _Stop:
    """Set by the first signal; `number` is which one it was."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.number: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.number = self.number or number
        self.event.set()


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Turn SIGINT and SIGTERM into an event: a start or a stop is never cut in the middle."""
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> Parser:
    parser = Parser(prog="outrider up", description="Start the fleet on this machine: broker, manager and HTTP API.")
    parser.add_argument("--config", type=Path, help="a TOML file with these and further settings")
    parser.add_argument("--data-dir", type=Path, help="where everything is kept (default: outrider-data)")
    parser.add_argument("--database", help="postgresql://… (default: SQLite in the data folder)")
    parser.add_argument("--host", help="address of the API (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port of the API (default: 8080; 0: any free one)")
    parser.add_argument("--public-url", help="how devices reach the API, where that is another address")
    parser.add_argument("--tenant", help="the tenant of this fleet (default: default)")
    parser.add_argument("--broker", choices=("auto", "mosquitto", "iotcore"), help="which broker to start")
    parser.add_argument("--broker-host", help="address of the broker (default: 127.0.0.1)")
    parser.add_argument("--broker-port", type=int, help="port of the broker (default: any free one)")
    parser.add_argument(
        "--publisher-key", type=Path, action="append", default=[], metavar="PUB", help="trust this public key's bundles"
    )
    return parser
