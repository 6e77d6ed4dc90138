"""What is installed: the device needs little, and the demo needs no torch."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOREIGN = ("torch", "xgboost", "onnx", "onnxruntime", "fastapi", "sqlalchemy", "scipy", "pandas", "rich", "treelite")


def test_the_demo_installs_no_torch() -> None:
    assert "torch" not in _closure("outrider", frozenset({"all"}))


@pytest.mark.system
@pytest.mark.timeout(240)
def test_a_plain_install_gives_a_working_daemon(tmp_path: Path) -> None:
    """`pip install .` with no extras, in an empty environment: the daemon starts, and nothing foreign is there."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = venv / "bin" / "python"
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--constraint", str(ROOT / "constraints.txt"), str(ROOT)],
        check=True,
    )  # fmt: skip
    probe = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    found = subprocess.run([str(python), "-c", probe, *FOREIGN], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
    config = tmp_path / "device.toml"
    config.write_text('state_dir = "state"\nfleet_url = "http://127.0.0.1:9"\nname = "bare"\nport = 0\n', "utf-8")
    checked = subprocess.run(
        [str(venv / "bin" / "outriderd"), "--config", str(config), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    helped = subprocess.run([str(venv / "bin" / "outrider"), "up"], capture_output=True, text=True, check=False)
    assert helped.returncode == 2
    assert "pip install 'outrider[fleet]'" in helped.stderr


def _closure(name: str, extras: frozenset[str]) -> set[str]:
    """Every distribution that installing `name[extras]` brings, from the installed metadata."""
    found: set[str] = set()
    waiting = [(name, extras)]
    while waiting:
        current, wanted = waiting.pop()
        for text in importlib.metadata.requires(current) or []:
            requirement, _, marker = text.partition(";")
            asked = re.findall(r"extra == ['\"]([^'\"]+)['\"]", marker)
            match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?", requirement)
            if match is None or (asked and not wanted.intersection(asked)):
                continue
            child = match.group(1).lower().replace("_", "-")
            more = frozenset(extra.strip() for extra in (match.group(2) or "").split(",") if extra.strip())
            if child not in found or more:
                found.add(child)
                if _installed(child):
                    waiting.append((child, more))
    return found


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
