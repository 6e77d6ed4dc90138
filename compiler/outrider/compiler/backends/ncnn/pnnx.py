"""The converter pnnx: a program that turns an ONNX file into ncnn's files, and says in passing what it dropped."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outrider.compiler.workshop import signal_name
from outrider.runtime.errors import ToolchainError, UnsupportedError

TIMEOUT_S = 300
_MESSAGE_LIMIT = 2000  # characters of the converter's output that an error quotes
_NO_BATCH = 233  # how ncnn writes "no batch axis"

_UNKNOWN = re.compile(r"^todo (\S+)$", re.MULTILINE)
_DROPPED = re.compile(r"^ignore (\S+) (\S+) (?:param|attr) (\S+)$", re.MULTILINE)
_REFUSED = re.compile(r"^.*\b(?:not supported|unsupported)\b.*$", re.MULTILINE | re.IGNORECASE)
_GIVEN = re.compile(r'\.input\("(\w+)", ncnn\.Mat\(\w+\.numpy\(\), batch_index=(\d+)\)')
_TAKEN = re.compile(r'\.extract\("(\w+)"\)\s+out\.append\(torch\.from_numpy\(\w+\.numpy\(batch_index=(\d+)\)')


@dataclass(frozen=True, kw_only=True)
class Blob:
    """An input or output of ncnn's graph, and whether the graph has kept the batch axis."""

    name: str
    batch_axis: bool


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What pnnx made: ncnn's graph (text) and weights, and the blobs in the order of the ONNX graph."""

    graph: bytes
    weights: bytes
    inputs: tuple[Blob, ...]
    outputs: tuple[Blob, ...]


def run_pnnx(data: bytes, shapes: Sequence[tuple[int, ...]], *, half: bool = False) -> Converted:
    """Convert an ONNX file whose float32 inputs have these shapes; with `half`, weights are stored as float16.

    Raises UnsupportedError with the operators that ncnn has no layer for, ToolchainError where pnnx is not installed,
    fails or takes longer than `TIMEOUT_S`.
    """
    with tempfile.TemporaryDirectory(prefix="outrider-pnnx-") as name:
        folder = Path(name)
        (folder / "m.onnx").write_bytes(data)
        given = ",".join(f"[{','.join(map(str, shape))}]f32" for shape in shapes)
        said = _run([str(find_pnnx()), "m.onnx", f"inputshape={given}", f"fp16={int(half)}"], folder)
        _refuse(said)
        try:
            graph, weights = (folder / "m.ncnn.param").read_bytes(), (folder / "m.ncnn.bin").read_bytes()
            script = (folder / "m_ncnn.py").read_text(encoding="utf-8")
        except OSError as e:
            raise ToolchainError(f"pnnx wrote no {Path(e.filename).name}:\n{said[-_MESSAGE_LIMIT:]}") from e
    return Converted(graph=graph, weights=weights, inputs=_blobs(_GIVEN, script), outputs=_blobs(_TAKEN, script))


def find_pnnx() -> Path:
    """The program inside the package, which is not imported, since that would load torch. Raises ToolchainError."""
    spec = importlib.util.find_spec("pnnx")
    for folder in spec.submodule_search_locations or () if spec else ():
        program = Path(folder, "pnnx")
        if os.access(program, os.X_OK) and program.is_file():
            return program
    raise ToolchainError("the converter pnnx is not installed", hint="pip install 'outrider[networks]'")


def _run(command: list[str], folder: Path) -> str:
    """What pnnx said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise ToolchainError(f"pnnx did not finish within {TIMEOUT_S} s") from e
    except OSError as e:
        raise ToolchainError(f"pnnx cannot be started: {e.strerror}") from e
    if done.returncode != 0:
        _refuse(done.stdout)
        if done.returncode < 0:
            name = signal_name(-done.returncode)
            raise UnsupportedError(f"pnnx crashed ({name}) on the model, which it cannot convert")
        raise ToolchainError(f"pnnx failed with status {done.returncode}:\n{done.stdout[-_MESSAGE_LIMIT:].strip()}")
    return done.stdout


def _refuse(said: str) -> None:
    """Refuse what was converted only in part: pnnx itself ends well then."""
    unknown = list(dict.fromkeys(_UNKNOWN.findall(said)))
    if unknown:
        raise UnsupportedError(f"ncnn has no layer for the operator {', '.join(unknown)}")
    for kind, name, parameter in _DROPPED.findall(said):
        raise UnsupportedError(f"ncnn's layer for {kind} ({name}) has no parameter {parameter}")
    refused = _REFUSED.search(said)
    if refused:
        raise UnsupportedError(f"ncnn cannot run the model: {refused.group().strip()}")


def _blobs(pattern: re.Pattern[str], script: str) -> tuple[Blob, ...]:
    """The blobs as the program that pnnx writes for trying its result out uses them."""
    found = []
    for name, axis in pattern.findall(script):
        if int(axis) not in (0, _NO_BATCH):
            raise UnsupportedError(f"the model moves the batch to axis {axis}, which ncnn cannot follow")
        found.append(Blob(name=name, batch_axis=int(axis) == _NO_BATCH))
    return tuple(found)
