"""Commands of the fleet, logs, and systemd's notification."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider.runtime.commands import MAX_REPLY_BYTES, Context, run_command
from outrider.runtime.errors import BadMessageError, NotFoundError
from outrider.runtime.logs import JsonFormatter, Tail, TextFormatter, set_up_logging
from outrider.runtime.models import Models
from outrider.runtime.notify import notify, watchdog_interval_s
from outrider.runtime.store import Store


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    store = Store(tmp_path / "state")
    yield Context(store=store, models=Models(), tail=Tail(), boot_id="b", started=time.monotonic())
    store.close()


@pytest.fixture
def quiet() -> Iterator[None]:
    """The logger as it was before."""
    logger = logging.getLogger("outrider")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers, logger.level, logger.propagate = before


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("outrider.runtime.link", logging.INFO, "f", 1, message, None, None)
    vars(made).update(fields)
    return made


def test_diagnostics_are_text_by_name(context: Context) -> None:
    report = run_command(context, "diagnostics", b"")
    assert report["boot_id"] == "b"
    assert int(report["rss_bytes"]) > 0
    assert int(report["disk_free_bytes"]) > 0


def test_logs_are_the_last_lines_and_bounded(context: Context) -> None:
    context.tail.setFormatter(TextFormatter())
    for number in range(600):
        context.tail.emit(record(f"line {number}"))
    lines = run_command(context, "logs", b'{"lines": 3}')["lines"].splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["597", "598", "599"]
    context.tail.emit(record("é" * 100_000))
    assert len(run_command(context, "logs", b"")["lines"].encode()) <= MAX_REPLY_BYTES
    assert run_command(context, "logs", b'{"lines": -1}') == {"lines": ""}


def test_wrong_commands_are_refused(context: Context) -> None:
    with pytest.raises(NotFoundError, match="logs, diagnostics"):
        run_command(context, "reboot", b"")
    for payload in (b"{", b'{"lines": "x"}', b'{"cmd": "rm"}'):
        with pytest.raises(BadMessageError):
            run_command(context, "logs", payload)


def test_lines_are_structured() -> None:
    made = record("connected", session="ab", path=Path("/x"))
    assert TextFormatter().format(made).endswith("INFO link: connected session=ab path=/x")
    entry = json.loads(JsonFormatter().format(made))
    assert (entry["from"], entry["level"], entry["session"], entry["path"]) == ("link", "info", "ab", "/x")
    try:
        raise ValueError("why")
    except ValueError as e:
        made.exc_info = (ValueError, e, e.__traceback__)
    assert "ValueError: why" in json.loads(JsonFormatter().format(made))["traceback"]
    assert "ValueError: why" in TextFormatter().format(made)


def test_setting_up_twice_logs_once(quiet: None, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("text", "info")
    tail = set_up_logging("json", "warning")
    logging.getLogger("outrider.runtime.x").info("hidden")
    logging.getLogger("outrider.runtime.x").warning("shown")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["shown"]
    assert len(tail.last(10)) == 1


def test_without_systemd_nothing_is_notified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    assert not notify("READY=1")
    assert watchdog_interval_s() is None
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify("READY=1")
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    assert watchdog_interval_s() == 1.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval_s() is None
