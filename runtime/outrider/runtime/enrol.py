"""Enrolment: a one-time token becomes an identity and the pinned keys.

`outrider enrol --config device.toml --token TOKEN`; `outriderd` does the same at its first start.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.runtime.arguments import Parser
from outrider.runtime.backoff import Backoff
from outrider.runtime.config import DeviceConfig, load_config
from outrider.runtime.errors import EXIT_OK, BadConfigError, UnavailableError
from outrider.runtime.identity import Identity, load_identity, save_identity

if TYPE_CHECKING:
    from outrider.runtime.api_client.types import Enrolment, EnrolRequest

log = logging.getLogger(__name__)

Ask = Callable[["EnrolRequest"], "Enrolment"]


def enrol(
    config: DeviceConfig,
    token: str | None = None,
    *,
    stop: threading.Event | None = None,
    give_up_s: float | None = None,
    ask: Ask | None = None,
) -> Identity:
    """The device's identity: the saved one, or a new one from the fleet, saved before this returns.

    While the fleet is away it is asked again with full-jitter backoff, until `stop` is set or `give_up_s` seconds
    have passed (None: for ever); then UnavailableError. A refused token is BadInputError at once. `ask` stands in
    for the fleet in tests.
    """
    known = load_identity(config.state_dir)
    if known is not None:
        return known
    request = _request(config, token or config.enrolment_token())
    answer = _ask_until_answered(
        ask or _fleet(config), request, Backoff(config.backoff_s, config.backoff_max_s), stop, give_up_s
    )
    identity = _identity(config, request, answer)
    identity.trust_store()  # keys that do not parse must fail here, not at the first update
    save_identity(identity, config.state_dir)
    log.info("enrolled", extra={"tenant": identity.tenant, "device": identity.device})
    return identity


def _request(config: DeviceConfig, token: str | None) -> EnrolRequest:
    from outrider.runtime.api_client.types import EnrolRequest
    from outrider.runtime.probe import host_target

    if token is None:
        raise BadConfigError(
            "the device is not enrolled and has no token",
            hint="make one with 'outrider fleet token' and set token or token_file",
        )
    return EnrolRequest(token=token, name=config.name or "", target=host_target())


def _fleet(config: DeviceConfig) -> Ask:
    from outrider.runtime.api_client import FleetClient

    if config.fleet_url is None:
        raise BadConfigError("the device is not enrolled and has no fleet_url", hint="set it in the configuration")
    return FleetClient(config.fleet_url).enrol


def _ask_until_answered(
    ask: Ask, request: EnrolRequest, backoff: Backoff, stop: threading.Event | None, give_up_s: float | None
) -> Enrolment:
    stop = stop or threading.Event()
    deadline = None if give_up_s is None else time.monotonic() + give_up_s
    while True:
        try:
            return ask(request)
        except UnavailableError as e:
            delay = backoff.next_s()
            if deadline is not None and time.monotonic() + delay > deadline:
                raise
            log.warning("the fleet is away, enrolment waits: %s", e.message, extra={"retry_s": round(delay, 2)})
            if stop.wait(delay):
                raise


def _identity(config: DeviceConfig, request: EnrolRequest, answer: Enrolment) -> Identity:
    return Identity(
        tenant=answer.tenant,
        device=answer.device,
        name=request.name or answer.device,
        secret=answer.secret,
        api_url=answer.api_url or config.fleet_url or "",
        mqtt_host=answer.mqtt_host,
        mqtt_port=answer.mqtt_port,
        mqtt_username=answer.mqtt_username,
        mqtt_password=answer.mqtt_password,
        trust={purpose: tuple(pems) for purpose, pems in answer.trust.items()},
    )


def main(argv: Sequence[str]) -> int:
    """`outrider enrol`: enrol this device and print who it is."""
    parser = Parser(prog="outrider enrol", description="Enrol this device with a one-time token.")
    parser.add_argument("--config", type=Path, required=True, help="device.toml")
    parser.add_argument("--token", help="the one-time token (default: the configuration's)")
    parser.add_argument("--wait", type=float, default=60.0, metavar="S", help="wait this long for the fleet (60)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = load_config(arguments.config)
    before = load_identity(config.state_dir)
    identity = enrol(config, arguments.token, give_up_s=arguments.wait)
    state = "enrolled" if before is None else "already enrolled"
    print(f"{state}: {identity.tenant}/{identity.device} ({identity.name})")
    return EXIT_OK
