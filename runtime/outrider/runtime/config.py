"""The device's configuration: one TOML file, read once, checked whole.

```toml
state_dir = "/var/lib/outrider"            # relative paths are relative to this file
fleet_url = "http://fleet.example:8080"
name = "till-7"
token_file = "token"                       # or token = "..."; needed once, to enrol
port = 8700
```

Everything else has a default. Unknown keys are refused, so that a typing mistake never becomes a silent default.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from outrider.runtime.errors import BadConfigError
from outrider.runtime.messages.topics import Identifier

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Transport = Literal["http", "mqtt"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]

# sun_path holds 108 bytes on Linux, the last one NUL.
MAX_SOCKET_PATH_BYTES = 107
_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


class DeviceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one device is told by its integrator. Times are seconds, sizes bytes.

    - `state_dir`: identity, slots, journal and outbox; one daemon at a time.
    - `fleet_url`, `name`, `token` or `token_file`: to enrol; not needed once enrolled. Without `name` the fleet
      picks one.
    - `host`, `port`, `socket`: the local inference API. Port 0 takes any free port; a host beyond loopback needs
      `expose = true`, because the API has no authentication. `socket` defaults to `outrider.sock` in `state_dir`.
    - `max_request_bytes`, `request_s`, `max_connections`: what one client may ask of the API.
    - `window_s`: how long a profile window is; `predictions`: whether predictions with ids are sent to the fleet.
    - `transport`: which ways to fetch a bundle, in order of preference.
    - `heartbeat_s`: how often the reported state is sent even if nothing changed.
    - `backoff_s`, `backoff_max_s`: bounds of the full-jitter backoff of enrolment and MQTT.
    - `keepalive_s`: MQTT keep-alive.
    """

    state_dir: Path
    fleet_url: str | None = None
    name: Identifier | None = None
    token: str | None = None
    token_file: Path | None = None

    host: str = "127.0.0.1"
    port: Port = 8700
    socket: Path | None = None
    expose: bool = False
    max_request_bytes: Annotated[int, Meta(ge=1024)] = 16 * 1024 * 1024
    request_s: Seconds = 30.0
    max_connections: Annotated[int, Meta(ge=1, le=4096)] = 128

    window_s: Seconds = 300.0
    predictions: bool = True

    transport: Annotated[tuple[Transport, ...], Meta(min_length=1, max_length=2)] = ("http", "mqtt")
    heartbeat_s: Seconds = 300.0
    backoff_s: Seconds = 1.0
    backoff_max_s: Seconds = 120.0
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30

    log_format: LogFormat = "text"
    log_level: LogLevel = "info"

    @property
    def socket_path(self) -> Path:
        """Where the Unix socket of the inference API lies."""
        return self.socket or self.state_dir / "outrider.sock"

    def enrolment_token(self) -> str | None:
        """The one-time token, from `token` or the first line of `token_file`; None where neither is given."""
        if self.token_file is None:
            return self.token
        try:
            text = self.token_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise BadConfigError(f"cannot read token_file {self.token_file}: {e}") from e
        lines = text.split()
        if not lines:
            raise BadConfigError(f"token_file {self.token_file} is empty")
        return lines[0]


KEYS: tuple[str, ...] = DeviceConfig.__struct_fields__


def load_config(path: Path | str) -> DeviceConfig:
    """Read `device.toml`. Raises BadConfigError naming the file, the key and what is wrong with it."""
    file = Path(path)
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise BadConfigError(f"cannot read {file}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise BadConfigError(f"{file} is not valid TOML: {e}") from e
    return parse_config(data, folder=file.resolve().parent, origin=str(file))


def parse_config(data: dict[str, Any], *, folder: Path, origin: str = "the configuration") -> DeviceConfig:
    """A checked configuration from decoded TOML; relative paths are taken relative to `folder`."""
    _refuse_unknown_keys(data, origin)
    try:
        config = msgspec.convert(data, DeviceConfig, dec_hook=_to_path)
    except msgspec.ValidationError as e:
        raise BadConfigError(f"{origin}: {e}") from e
    config = _with_absolute_paths(config, folder)
    _check(config, origin)
    return config


def _to_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError("expected a path")


def _refuse_unknown_keys(data: dict[str, Any], origin: str) -> None:
    for key in data:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            guess = f"did you mean {close[0]!r}? " if close else ""
            raise BadConfigError(f"{origin}: unknown key {key!r}", hint=f"{guess}known keys are {', '.join(KEYS)}")


def _with_absolute_paths(config: DeviceConfig, folder: Path) -> DeviceConfig:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else folder / path.expanduser()

    return msgspec.structs.replace(
        config,
        state_dir=absolute(config.state_dir),
        token_file=absolute(config.token_file),
        socket=absolute(config.socket),
    )


def _check(config: DeviceConfig, origin: str) -> None:
    if config.token is not None and config.token_file is not None:
        raise BadConfigError(f"{origin}: both 'token' and 'token_file' are given", hint="keep one of them")
    if config.host not in _LOOPBACK_HOSTS and not config.expose:
        raise BadConfigError(
            f"{origin}: host {config.host!r} is not loopback and the inference API has no authentication",
            hint="use 127.0.0.1, or set expose = true behind a firewall of your own",
        )
    if len(bytes(config.socket_path)) > MAX_SOCKET_PATH_BYTES:
        raise BadConfigError(
            f"{origin}: the socket path {config.socket_path} is over {MAX_SOCKET_PATH_BYTES} bytes",
            hint="set 'socket' to a shorter path",
        )
    if len(set(config.transport)) != len(config.transport):
        raise BadConfigError(f"{origin}: 'transport' names {config.transport[0]!r} twice")
    if config.backoff_s > config.backoff_max_s:
        raise BadConfigError(f"{origin}: backoff_s {config.backoff_s} is over backoff_max_s {config.backoff_max_s}")
    if config.fleet_url is not None and not config.fleet_url.startswith(("http://", "https://")):
        raise BadConfigError(f"{origin}: fleet_url {config.fleet_url!r} is not an http:// or https:// address")
