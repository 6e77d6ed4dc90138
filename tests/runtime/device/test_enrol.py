"""Enrolment: once, durably, with patience."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from outrider.runtime import enrol as enrolment
from outrider.runtime.api_client.types import Enrolment, EnrolRequest
from outrider.runtime.backoff import Backoff
from outrider.runtime.config import DeviceConfig
from outrider.runtime.enrol import enrol
from outrider.runtime.errors import BadConfigError, BadInputError, UnavailableError
from outrider.runtime.identity import IDENTITY_FILE, load_identity
from outrider.runtime.trust import TrustStore, generate_key


class Fleet:
    """Answers after `away` failures."""

    def __init__(self, *, away: int = 0, pem: str | None = None) -> None:
        self.away = away
        self.pem = generate_key().public.pem() if pem is None else pem
        self.requests: list[EnrolRequest] = []

    def __call__(self, request: EnrolRequest) -> Enrolment:
        self.requests.append(request)
        if len(self.requests) <= self.away:
            raise UnavailableError("connection refused")
        if request.token != "good":
            raise BadInputError("the token is not valid")
        return Enrolment(
            tenant="acme",
            device="till-7",
            secret="s",
            mqtt_host="127.0.0.1",
            mqtt_port=1883,
            mqtt_username="acme/till-7",
            mqtt_password="p",
            api_url="http://127.0.0.1:8080",
            trust={"desired": (self.pem,), "bundle": (self.pem,)},
        )


def config(folder: Path, token: str | None = "good") -> DeviceConfig:
    return DeviceConfig(
        state_dir=folder / "state", fleet_url="http://x", name="till-7", token=token, backoff_s=0.01, backoff_max_s=0.02
    )


def test_enrols_once_and_keeps_the_secret_private(tmp_path: Path) -> None:
    fleet = Fleet()
    first = enrol(config(tmp_path), ask=fleet)
    again = enrol(config(tmp_path, token=None), ask=fleet)
    assert first == again == load_identity(tmp_path / "state")
    assert len(fleet.requests) == 1
    assert fleet.requests[0].target.arch
    assert (tmp_path / "state" / IDENTITY_FILE).stat().st_mode & 0o777 == 0o600
    assert len(first.trust_store().keys_for(TrustStore.FOLDERS["bundle"])) == 1
    assert first.client_id == "acme-till-7"


def test_waits_while_the_fleet_is_away(tmp_path: Path) -> None:
    fleet = Fleet(away=3)
    assert enrol(config(tmp_path), ask=fleet).device == "till-7"
    assert len(fleet.requests) == 4


def test_gives_up_when_told_to(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        enrol(config(tmp_path), ask=Fleet(away=10_000), give_up_s=0.1)
    stop = threading.Event()
    stop.set()
    with pytest.raises(UnavailableError):
        enrol(config(tmp_path), ask=Fleet(away=10_000), stop=stop)
    assert load_identity(tmp_path / "state") is None


def test_a_refused_token_is_not_tried_again(tmp_path: Path) -> None:
    fleet = Fleet()
    with pytest.raises(BadInputError, match="token"):
        enrol(config(tmp_path, token="bad"), ask=fleet)
    assert len(fleet.requests) == 1


def test_keys_that_do_not_parse_leave_the_device_unenrolled(tmp_path: Path) -> None:
    with pytest.raises(BadInputError):
        enrol(config(tmp_path), ask=Fleet(pem="no key"))
    assert load_identity(tmp_path / "state") is None


def test_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadConfigError, match="no token"):
        enrol(config(tmp_path, token=None), ask=Fleet())
    with pytest.raises(BadConfigError, match="fleet_url"):
        enrol(DeviceConfig(state_dir=tmp_path, token="good"))


def test_a_damaged_identity_is_named(tmp_path: Path) -> None:
    (tmp_path / IDENTITY_FILE).write_text('{"tenant": 1}')
    with pytest.raises(BadConfigError, match="damaged"):
        load_identity(tmp_path)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "device.toml"
    path.write_text('state_dir = "state"\nfleet_url = "http://127.0.0.1:9"\n')
    monkeypatch.setattr(enrolment, "_fleet", lambda _config: Fleet())
    assert enrolment.main(["--config", str(path), "--token", "good"]) == 0
    assert enrolment.main(["--config", str(path), "--token", "good"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == ["enrolled: acme/till-7 (till-7)", "already enrolled: acme/till-7 (till-7)"]


def test_backoff_is_full_jitter_between_base_and_cap() -> None:
    backoff = Backoff(1.0, 8.0, rng=random.Random(1))
    for ceiling in (1, 2, 4, 8, 8, 8):
        assert 0 < backoff.next_s() <= ceiling
    backoff.reset()
    assert backoff.next_s() <= 1
    spread = {round(Backoff(100.0, 100.0).next_s()) for _ in range(50)}
    assert len(spread) > 10
