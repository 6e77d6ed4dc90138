"""Jobs for a workshop: what foreign compilers do at their worst. Imported in its process, by the tests' own path."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any, NoReturn

import numpy as np

from outrider.runtime.errors import UnsupportedError


def echo(value: Any) -> Any:
    """The value itself."""
    return value


def where() -> int:
    """The id of the process that does the jobs."""
    return os.getpid()


def refuse() -> NoReturn:
    """Raise an error of the tree, with a hint."""
    raise UnsupportedError("there is no operator Foo", hint="use Bar")


def stumble() -> NoReturn:
    """Raise what compilers like to raise."""
    raise KeyError("first line\nsecond line")


def leave(code: int) -> NoReturn:
    """End the process as a script would."""
    sys.exit(code)


def abort() -> NoReturn:
    """Die as C++ does, with a last word."""
    os.write(2, b"terminate called after throwing an instance of 'std::bad_idea'\n")
    os.abort()


def die(number: int) -> None:
    """Die of a signal."""
    os.kill(os.getpid(), number)


def hang(seconds: float) -> None:
    """Sleep, deaf to polite signals."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(seconds)


def eat(size: int) -> int:
    """Take so many bytes."""
    return int(np.ones(size, np.uint8).size)


def chatter() -> str:
    """Print in every way there is."""
    print("from Python")
    sys.stdout.flush()
    os.write(1, b"from C\n" * 1000)
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    return "done"


def read_input() -> int:
    """Read all of the input, as a tool that asks questions does; how much there was."""
    return len(sys.stdin.read()) + len(os.read(0, 1 << 16))


def unpicklable() -> Any:
    """What no pipe takes."""
    return lambda: None


def spawn() -> int:
    """Leave a process of its own behind, then die; its id is written to the errors' file."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    os.write(2, f"child {child.pid}\n".encode())
    with contextlib.suppress(KeyboardInterrupt):
        os.abort()
    return child.pid
