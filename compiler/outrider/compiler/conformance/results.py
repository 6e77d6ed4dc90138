"""What a survey found, as records and as JSON that holds only what did not pass."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from outrider.runtime.errors import BadInputError, NotFoundError

Outcome = Literal["passed", "refused", "differs", "wrong", "failed"]
"""`refused`: with an error that says what is not supported. `differs`: numbers are off, which compiling finds, so that
nothing is shipped. `wrong`: numbers are off unnoticed. `failed`: anything else, a crash too."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the records."""


class Verdict(_Record, frozen=True, kw_only=True):
    """What became of a test on a backend, and why, in words."""

    outcome: Outcome
    reason: str = ""


class CaseResult(_Record, frozen=True, kw_only=True):
    """A test with its verdicts by backend; `onnxruntime` is ONNX Runtime called directly, without Outrider.

    A backend that is not named passed.
    """

    name: str
    group: str
    operator: str = ""
    verdicts: dict[str, Verdict] = {}

    def outcome(self, backend: str) -> Outcome:
        """What became of it on a backend."""
        found = self.verdicts.get(backend)
        return "passed" if found is None else found.outcome


class Results(_Record, frozen=True, kw_only=True):
    """A survey: its date (ISO 8601), the versions by distribution, the backends and the tests.

    `whole`: they went through `compile_model` and `load`, else by the same steps without a bundle.
    """

    date: str
    versions: dict[str, str]
    backends: tuple[str, ...]
    whole: bool
    cases: tuple[CaseResult, ...]


def write_results(path: Path, results: Results) -> None:
    """Write JSON with a test a line."""
    head = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(results, cases=())), indent=1).decode()
    lines = ",\n  ".join(msgspec.json.encode(case).decode() for case in results.cases)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head.replace('"cases": []', f'"cases": [\n  {lines}\n ]') + "\n", encoding="utf-8")


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote. Raises NotFoundError, BadInputError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except FileNotFoundError as e:
        raise NotFoundError(f"there are no results {path}") from e
    except msgspec.MsgspecError as e:
        raise BadInputError(f"{path} holds no results of a conformance survey: {e}") from e
