"""Keep the talk of torch's exporter out of a command's output."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_TALKERS = ("torch", "onnxscript", "onnx_ir")
_NOTHING = logging.CRITICAL + 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that torch prints, logs or warns of gets out. Errors do, as exceptions."""
    before = {logger: logger.level for logger in _loggers()}
    for logger in before:
        logger.setLevel(_NOTHING)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


def _loggers() -> list[logging.Logger]:
    """Theirs, with those below that have a level of their own; others take it from them."""
    known = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and logger.level and name.partition(".")[0] in _TALKERS
    ]
    return list({*known, *(logging.getLogger(name) for name in _TALKERS)})
