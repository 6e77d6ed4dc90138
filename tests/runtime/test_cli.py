"""The command table, and the commands of the runtime."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from outrider.runtime import cli, daemon, errors
from outrider.runtime.arguments import HelpShown
from outrider.runtime.bundle.cli import Inspection


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_resolves_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    function = cli.resolve(name, cli.COMMANDS[name])
    with pytest.raises(HelpShown):
        function(["--help"])
    assert cli.main([name, "--help"]) == 0
    assert capsys.readouterr().out.count(f"usage: outrider {name}") == 2


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_refuses_an_unknown_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--nonsense"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(rf"error: .*\n  hint: outrider {name} --help explains it\n", shown.err)


def test_the_daemon_refuses_an_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert daemon.main(["--help"]) == 0
    assert daemon.main(["--config", "x", "--nonsense"]) == 2
    assert "hint: outriderd --help" in capsys.readouterr().err


def test_usage_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("outrider 0.")
    assert cli.main(["dance"]) == 2
    assert "hint: outrider --help" in capsys.readouterr().err


def test_a_missing_package_names_the_extra() -> None:
    command = cli.Command("surely_not_installed:main", "nothing", "fleet")
    with pytest.raises(errors.UsageError, match=r"outrider\[fleet\]"):
        cli.resolve("nothing", command)


def test_errors_and_interrupts_become_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(error: BaseException) -> Callable[[list[str]], int]:
        def run(arguments: list[str]) -> int:
            raise error

        return run

    cases = {
        5: errors.TargetMismatchError("no", hint="yes"),
        6: errors.ParityError(),
        70: errors.StorageFullError(),
        130: KeyboardInterrupt(),
    }
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for code, error in cases.items():
        monkeypatch.setattr(cli, "run", failing(error))
        assert cli.main(["x"]) == code
    text = capsys.readouterr().err
    assert "error: no\n  hint: yes\n" in text
    assert "Traceback" not in text

    monkeypatch.setattr(cli, "run", failing(ZeroDivisionError("surprise")))
    assert cli.main(["x"]) == 70
    text = capsys.readouterr().err
    assert "surprise" in text
    assert "please report it" in text


def test_nobody_reads_on(make_bundle: Callable[..., Path]) -> None:
    command = [sys.executable, "-m", "outrider.runtime.cli", "inspect", "--json", str(make_bundle())]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_keys_sign_inspect(
    make_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = str(tmp_path / "keys")
    assert cli.main(["keys", "show", "--dir", keys]) == 1
    for algorithm in ("ed25519", "p256"):
        assert cli.main(["keys", "init", "--dir", keys, "--name", algorithm, "--algorithm", algorithm]) == 0
    assert cli.main(["keys", "init", "--dir", keys, "--name", "p256"]) == 1
    capsys.readouterr()
    assert cli.main(["keys", "show", "--dir", keys]) == 0
    shown = capsys.readouterr().out
    assert shown.count("BEGIN PUBLIC KEY") == 2
    assert "PRIVATE" not in shown

    path = make_bundle()
    assert cli.main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "mean 1  for host" in text
    assert "signature   none" in text
    assert "features float32(n, 3)" in text
    assert cli.main(["inspect", str(path), "--trust", f"{keys}/ed25519.pub"]) == 1
    assert cli.main(["sign", str(path), "--key", f"{keys}/ed25519.key"]) == 0
    assert cli.main(["inspect", str(path), "--trust", f"{keys}/p256.pub"]) == 1
    capsys.readouterr()
    assert cli.main(["inspect", str(path), "--trust", f"{keys}/ed25519.pub", "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Inspection)
    assert (found.signature, found.manifest.name) == ("verified", "mean")
    assert cli.main(["inspect", str(path)]) == 0
    assert "signature   not checked" in capsys.readouterr().out


def test_a_damaged_bundle_is_neither_signed_nor_shown(
    make_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_bundle()
    path.write_bytes(path.read_bytes()[:-1])
    assert cli.main(["keys", "init", "--dir", str(tmp_path)]) == 0
    assert cli.main(["sign", str(path), "--key", str(tmp_path / "publisher.key")]) == 1
    assert cli.main(["inspect", str(path)]) == 1
    assert "cut short" in capsys.readouterr().err
    assert not path.with_name("mean.orb.dsse").exists()


def test_keys_lie_in_the_configuration_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from outrider.runtime.trust.cli import default_key_folder

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_key_folder() == tmp_path / "outrider" / "keys"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert default_key_folder() == Path.home() / ".config" / "outrider" / "keys"
