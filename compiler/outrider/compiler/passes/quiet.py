"""Keep a library's talk out of a command's output."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from outrider.runtime.engines.onnxruntime_import import import_onnxruntime

_WARNING, _FATAL = 2, 4  # ONNX Runtime's severities; the first is what it starts with


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that onnxruntime prints, logs or warns of gets out. Errors do, as exceptions.

    Its modules log to the root logger too, which then gets a handler for good where it has none; it gets one that
    keeps silent, for as long as this lasts.
    """
    onnxruntime = import_onnxruntime()

    root, own, silent = logging.getLogger(), logging.getLogger("onnxruntime"), logging.NullHandler()
    level = own.level
    root.addHandler(silent)
    root.addFilter(_not_theirs)
    own.setLevel(logging.CRITICAL + 1)
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
        own.setLevel(level)
        root.removeFilter(_not_theirs)
        root.removeHandler(silent)


def _not_theirs(record: logging.LogRecord) -> bool:
    return "onnxruntime" not in record.pathname
