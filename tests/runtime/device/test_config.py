"""device.toml: defaults, paths, and every way to get it wrong."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.runtime.config import KEYS, load_config, parse_config
from outrider.runtime.errors import BadConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "device.toml"
    path.write_text(text)
    return path


def test_defaults_and_relative_paths(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, 'state_dir = "state"\ntoken_file = "token"\n'))
    assert config.state_dir == tmp_path / "state"
    assert config.socket_path == tmp_path / "state" / "outrider.sock"
    assert config.token_file == tmp_path / "token"
    assert (config.host, config.port, config.transport) == ("127.0.0.1", 8700, ("http", "mqtt"))


def test_unknown_key_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BadConfigError) as caught:
        load_config(write(tmp_path, 'state_dir = "s"\nwindow = 5\n'))
    assert "unknown key 'window'" in caught.value.message
    assert caught.value.hint is not None
    assert "did you mean 'window_s'" in caught.value.hint
    assert all(key in caught.value.hint for key in KEYS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "state_dir"),
        ("state_dir = 3", "state_dir"),
        ('state_dir = ""', "state_dir"),
        ("state_dir = ", "not valid TOML"),
        ('state_dir = "s"\nport = 70000', "port"),
        ('state_dir = "s"\nwindow_s = 0', "window_s"),
        ('state_dir = "s"\ntransport = ["carrier pigeon"]', "transport"),
        ('state_dir = "s"\ntransport = ["http", "http"]', "twice"),
        ('state_dir = "s"\ntransport = []', "transport"),
        ('state_dir = "s"\nname = "a/b"', "name"),
        ('state_dir = "s"\nhost = "0.0.0.0"', "not loopback"),
        ('state_dir = "s"\nfleet_url = "ftp://x"', "fleet_url"),
        ('state_dir = "s"\ntoken = "a"\ntoken_file = "b"', "token_file"),
        ('state_dir = "s"\nlog_level = "loud"', "log_level"),
        ('state_dir = "s"\nbackoff_s = 9\nbackoff_max_s = 3', "backoff_max_s"),
        (f'state_dir = "{"s" * 120}"', "over 107 bytes"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadConfigError, match=says):
        load_config(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfigError, match=r"cannot read .*nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")


def test_exposure_must_be_asked_for(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, 'state_dir = "s"\nhost = "0.0.0.0"\nexpose = true')).host == "0.0.0.0"


def test_the_token_comes_from_its_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, 'state_dir = "s"\ntoken_file = "token"'))
    with pytest.raises(BadConfigError, match="token_file"):
        config.enrolment_token()
    (tmp_path / "token").write_text("  \n")
    with pytest.raises(BadConfigError, match="empty"):
        config.enrolment_token()
    (tmp_path / "token").write_text("abc\n")
    assert config.enrolment_token() == "abc"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(data=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=10), values, max_size=5))
def test_any_document_is_a_configuration_or_a_clear_error(data: dict[str, Any]) -> None:
    with contextlib.suppress(BadConfigError):
        parse_config(data, folder=Path("/tmp"))
