"""What commands that read a model are told beside it: calibration, sizes, labels, an evaluation of the caller's own."""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outrider.compiler.metrics import Evaluate
from outrider.compiler.model import Label
from outrider.runtime.arguments import Parser
from outrider.runtime.errors import BadInputError, OutriderError, UsageError

_FREE = ("n", "?")


@dataclass(frozen=True)
class ModelOptions:
    """How to read a model. `shapes`: sizes to bind, by input, None for those that stay free."""

    calibration: Path | None
    shapes: dict[str, tuple[int | None, ...]]
    labels: tuple[Label, ...]
    evaluate: Evaluate | None
    trust_pickle: bool


def add_model_options(parser: Parser) -> None:
    """Let a command take them."""
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="real rows, .npz or .parquet, or images")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=SIZES",
        help="bind sizes, such as x=1,3,320,320; n keeps one free; may be repeated",
    )
    parser.add_argument(
        "--label", action="append", default=[], metavar="NAME", help="a class label, in the order of the outputs"
    )
    parser.add_argument(
        "--eval",
        metavar="MODULE:FUNCTION",
        help="a function of predict, inputs and labels that gives metrics for goals",
    )
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle, which can run any code")


def model_options(arguments: Namespace) -> ModelOptions:
    """What a command was given. Raises UsageError; BadInputError where the evaluation's module fails."""
    return ModelOptions(
        calibration=arguments.calibration,
        shapes=parse_shapes(arguments.shape),
        labels=parse_labels(arguments.label),
        evaluate=None if arguments.eval is None else find_function(arguments.eval),
        trust_pickle=arguments.trust_pickle,
    )


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int | None, ...]]:
    """`x=1,3,n,n` for each input. Raises UsageError."""
    shapes: dict[str, tuple[int | None, ...]] = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        words = [word.strip() for word in sizes.split(",")]
        if not equals or not name or not all(word in _FREE or (word.isdecimal() and int(word) > 0) for word in words):
            raise UsageError(f"the shape {text!r} cannot be parsed", hint="for example x=1,3,320,320 or x=n,128")
        if name in shapes:
            raise UsageError(f"two shapes are given for the input {name!r}")
        shapes[name] = tuple(None if word in _FREE else int(word) for word in words)
    return shapes


def parse_labels(texts: Sequence[str]) -> tuple[Label, ...]:
    """Class labels: integers where all of them are, else text."""
    if all(text.removeprefix("-").isdecimal() for text in texts):
        return tuple(map(int, texts))
    return tuple(texts)


def find_function(text: str) -> Evaluate:
    """The function `module:function`, of a module that is installed or in the current folder.

    Raises UsageError where there is no such, BadInputError where importing the module fails.
    """
    module_name, _, name = text.partition(":")
    if not name or not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise UsageError(f"{text!r} names no function", hint="write module:function, such as checks:f1")
    if (folder := os.getcwd()) not in sys.path:  # noqa: PTH109
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        found: object = importlib.import_module(module_name)
    except OutriderError:
        raise
    except ModuleNotFoundError as e:
        if e.name is not None and (module_name == e.name or module_name.startswith(f"{e.name}.")):
            raise UsageError(
                f"there is no module {module_name!r} for {text!r}", hint="it is looked for in the current folder, too"
            ) from e
        raise BadInputError(f"the module {module_name!r} cannot be imported: {e}") from e
    except Exception as e:  # it is the caller's code
        raise BadInputError(f"the module {module_name!r} raised {type(e).__name__} when imported: {e}") from e
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UsageError(f"the module {module_name!r} has no function {name!r}")
    return found
