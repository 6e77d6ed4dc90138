"""Where settings come from, which source wins, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outrider.fleet.service import local_url
from outrider.fleet.settings import FleetSettings, load_settings
from outrider.runtime.errors import BadConfigError


def _file(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def test_later_sources_win(tmp_path: Path) -> None:
    path = _file(tmp_path, 'port = 1\ntenant = "file"\nalpha = 0.05\ndata_dir = "data"\n')
    environment = {"OUTRIDER_PORT": "2", "OUTRIDER_TENANT": "environment", "OUTRIDER_KEY": "not a setting"}
    settings = load_settings(path, environment=environment, overrides={"port": 3, "host": None})
    assert (settings.port, settings.tenant, settings.alpha) == (3, "environment", 0.05)
    assert settings.data_dir == tmp_path / "data"
    assert settings.host == "127.0.0.1"


def test_paths_that_follow_from_the_data_folder(tmp_path: Path) -> None:
    settings = FleetSettings(data_dir=tmp_path)
    assert settings.database_url == f"sqlite:///{tmp_path}/fleet.db"
    assert FleetSettings(database="postgresql://x/y").database_url == "postgresql://x/y"
    assert load_settings(environment={}, overrides={"data_dir": "here"}).data_dir == Path.cwd() / "here"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1", "did you mean 'port'"),
        ('port = "1"', "port"),
        ("port = 70000", "port"),
        ("alpha = 2.0", "alpha"),
        ("margin = 0.0", "margin"),
        ('broker = "rabbit"', "broker"),
        ('tenant = "a/b"', "tenant"),
        ("data_dir = 3", "data_dir"),
        ("port = ", "TOML"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, named: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(BadConfigError, match=named) as caught:
        load_settings(path, environment={})
    assert str(path) in caught.value.message


@pytest.mark.parametrize("environment", [{"OUTRIDER_PORT": "x"}, {"OUTRIDER_TICK_S": "0"}, {"OUTRIDER_DATA_DIR": ""}])
def test_variables_that_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(BadConfigError, match="environment"):
        load_settings(environment=environment)


@pytest.mark.parametrize("overrides", [{"port": 70000}, {"database_": "x"}])
def test_flags_that_are_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(BadConfigError, match="command line"):
        load_settings(environment={}, overrides=overrides)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadConfigError, match="cannot read"):
        load_settings(tmp_path / "none.toml", environment={})


@pytest.mark.parametrize(
    ("values", "local", "public"),
    [
        ({}, "http://127.0.0.1:8080", ""),
        ({"host": "::1"}, "http://[::1]:8080", ""),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:8080", ""),
        ({"public_url": "https://fleet.example/"}, "http://127.0.0.1:8080", "https://fleet.example"),
        ({"host": "0.0.0.0", "public_url": "http://here/fleet"}, "http://127.0.0.1:8080", "http://here/fleet"),
    ],
)
def test_addresses(values: dict[str, str], local: str, public: str) -> None:
    settings = load_settings(environment={}, overrides=values)
    assert (local_url(settings), settings.bundle_url("ab")) == (local, f"{public}/v1/bundles/ab/content")
