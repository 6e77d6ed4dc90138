"""The fleet's settings: defaults, then one TOML file, then `OUTRIDER_*` variables, then the command line.

```toml
data_dir = "/var/lib/outrider-fleet"
database = "postgresql://fleet@db.example/fleet"
port = 8080
```
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from outrider.runtime.api_client.connect import DEFAULT_DATA_DIR, KEY_FILE, URL_FILE
from outrider.runtime.errors import BadConfigError
from outrider.runtime.messages.topics import Identifier

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BrokerKind = Literal["auto", "mosquitto", "iotcore"]
Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[float, Meta(gt=0)]
ENVIRONMENT_PREFIX = "OUTRIDER_"
WILDCARD_HOSTS = ("", "0.0.0.0", "::")  # noqa: S104 - recognised, not bound


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one fleet runs. Times are seconds.

    - `data_dir`: everything that lasts: database, bundles, keys, the broker's state; one `outrider up` at a time.
    - `database`: `postgresql://…` or `sqlite:///…`; None: `fleet.db` in `data_dir`.
    - `host`, `port`: the HTTP API. Port 0 takes a free one.
    - `public_url`: how devices reach the API, where that is not `http://host:port` (a proxy, every interface).
    - `tenant`: the first part of every MQTT topic.
    - `broker`, `broker_host`, `broker_port`: which MQTT broker is started, and where; `auto` is Mosquitto where it is
      installed; no port: the one of the last time, or a free one.
    - `alpha`: the chance that a bundle in the field ever raises an alarm although nothing drifted.
    - `margin`: a distance between distribution functions that is too small to matter.
    - `tick_s`: how often rollouts, drift and triggers are looked at, besides every time something happens.
    - `lease_s`: how long a worker may be silent before its Job is given to another.
    - `desired_ttl_s`: how long a desired document may be acted on after it was made.
    """

    data_dir: Path = DEFAULT_DATA_DIR
    database: str | None = None
    host: str = "127.0.0.1"
    port: Port = 8080
    public_url: str | None = None
    tenant: Identifier = "default"
    broker: BrokerKind = "auto"
    broker_host: str = "127.0.0.1"
    broker_port: Port | None = None
    alpha: Annotated[float, Meta(gt=0, lt=1)] = 0.01
    margin: Annotated[float, Meta(gt=0, lt=1)] = 0.02
    tick_s: Positive = 1.0
    lease_s: Positive = 300.0
    desired_ttl_s: Positive = 30 * 86_400.0

    @property
    def database_url(self) -> str:
        """The database's URL."""
        return self.database or f"sqlite:///{self.data_dir / 'fleet.db'}"

    def bundle_url(self, sha256: str) -> str:
        """Where devices fetch a bundle: a path of the API as they enrolled with it, unless `public_url` names another.

        A device shows its secret nowhere else, so another name of the same machine would not do.
        """
        base = "" if self.public_url is None else self.public_url.rstrip("/")
        return f"{base}/v1/bundles/{sha256}/content"

    @property
    def trust_dir(self) -> Path:
        """The fleet's trust store: `bundle/*.pub` are the publishers, `desired/*.pub` is the fleet itself."""
        return self.data_dir / "trust"

    @property
    def bundles_dir(self) -> Path:
        """The registry's files."""
        return self.data_dir / "bundles"

    @property
    def admin_key_path(self) -> Path:
        """Where the first API key is kept for commands on this machine (mode 0600)."""
        return self.data_dir / KEY_FILE

    @property
    def url_path(self) -> Path:
        """Where a running `outrider up` writes the address of its API."""
        return self.data_dir / URL_FILE


KEYS: tuple[str, ...] = FleetSettings.__struct_fields__


def load_settings(
    file: Path | str | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> FleetSettings:
    """Gather the settings; later sources win, None in `overrides` means not given.

    Variables are named after the keys: `OUTRIDER_DATA_DIR`. Raises BadConfigError naming the source and the key.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_read_toml(Path(file)))
    variables = os.environ if environment is None else environment
    from_environment = {key: variables[name] for key in KEYS if (name := ENVIRONMENT_PREFIX + key.upper()) in variables}
    checked = [
        _convert(values, str(file), strict=True),
        _convert(from_environment, "the environment", strict=False),
        _convert({key: value for key, value in (overrides or {}).items() if value is not None}, "the command line"),
    ]
    merged = {key: value for source in checked for key, value in source.items()}
    settings = FleetSettings(**merged)
    return msgspec.structs.replace(settings, data_dir=settings.data_dir.expanduser().absolute())


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise BadConfigError(f"cannot read {file}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise BadConfigError(f"{file} is not valid TOML: {e}") from e
    if isinstance(data.get("data_dir"), str):
        data["data_dir"] = str(file.absolute().parent / data["data_dir"])
    return data


def _convert(values: Mapping[str, Any], origin: str, *, strict: bool = False) -> dict[str, Any]:
    """Check one source by itself, so that an error names it; only the keys that it gives come back."""
    for key in values:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            guess = f"did you mean {close[0]!r}? " if close else ""
            raise BadConfigError(f"{origin}: unknown key {key!r}", hint=f"{guess}known keys are {', '.join(KEYS)}")
    try:
        settings = msgspec.convert(dict(values), FleetSettings, strict=strict, dec_hook=_to_path)
    except msgspec.ValidationError as e:
        raise BadConfigError(f"{origin}: {e}") from e
    return {key: getattr(settings, key) for key in values}


def _to_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, (str, Path)) and str(value):
        return Path(value)
    raise ValueError("expected a path")
