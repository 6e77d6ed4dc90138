"""The error tree is the one drawn in its module's docstring."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from outrider.runtime import errors
from outrider.runtime.errors import OutriderError


def drawn() -> dict[str, tuple[str | None, int]]:
    """Class -> (base, exit code) as the docstring draws it; a code is inherited where none is drawn."""
    found: dict[str, tuple[str | None, int]] = {}
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").split("```")[1].strip().splitlines():
        match = re.match(r"^([│├└─ ]*)(\w+)\s+(\d+)?", line + " ")
        assert match, line
        depth, name = len(match[1]), match[2]
        while stack and stack[-1][0] >= depth:
            stack.pop()
        base = stack[-1][1] if stack else None
        inherited = found[base][1] if base else OutriderError.exit_code
        found[name] = (base, int(match[3]) if match[3] else inherited)
        stack.append((depth, name))
    return found


def classes() -> dict[str, type[OutriderError]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return {name: kind for name, kind in members if issubclass(kind, OutriderError)}


def test_the_tree_is_the_one_drawn() -> None:
    actual = {
        name: (kind.__base__.__name__ if kind is not OutriderError and kind.__base__ else None, kind.exit_code)
        for name, kind in classes().items()
    }
    assert actual == drawn()


@pytest.mark.parametrize("name", classes())
def test_every_error_has_a_default_message_and_survives_pickling(name: str) -> None:
    kind = classes()[name]
    assert str(kind()) == (kind.__doc__ or "").splitlines()[0]
    again = pickle.loads(pickle.dumps(kind("what", hint="do this")))
    assert type(again) is kind
    assert (str(again), again.message, again.hint) == ("what (do this)", "what", "do this")
