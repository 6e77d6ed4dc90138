"""Policies of the layout: the namespace stays a namespace, and the device's part stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPONENTS = ("targets", "runtime", "compiler", "trainer", "fleet")
HEAVY = ("torch", "xgboost", "lightgbm", "sklearn", "onnx", "onnxruntime", "fastapi", "sqlalchemy", "pandas", "rich")
HEAVIER = ("scipy", "treelite", "ziglang", "pyarrow")


def test_outrider_is_a_namespace() -> None:
    assert not [path for path in (ROOT / name / "outrider" / "__init__.py" for name in COMPONENTS) if path.exists()]
    assert all((ROOT / name / "outrider" / name / "py.typed").exists() for name in COMPONENTS)


def imported_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has imported after a statement."""
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import outrider.runtime",
        "from outrider.runtime import load",
        "import outrider.runtime.bundle, outrider.runtime.messages, outrider.runtime.trust, outrider.runtime.errors",
        "import outrider.runtime.engines, outrider.runtime.admission, outrider.runtime.probe, outrider.runtime.golden",
        "import outrider.runtime.cli, outrider.runtime.schema, outrider.runtime.bundle.cli, outrider.runtime.trust.cli",
    ],
)
def test_the_runtime_is_light(statement: str) -> None:
    assert not imported_by(statement) & {*HEAVY, *HEAVIER}


def test_the_contracts_need_no_numpy() -> None:
    found = imported_by("import outrider.runtime.bundle, outrider.runtime.messages, outrider.runtime.admission")
    assert "numpy" not in found
    assert "paho" not in found


def test_targets_are_light() -> None:
    assert not imported_by("import outrider.targets") & {*HEAVY, *HEAVIER, "numpy"}
