"""A first run of a converted artifact, in a process of its own: ncnn crashes on graphs that it takes for sound.

`python -m outrider.compiler.backends.ncnn.trial` reads the artifact from standard input, runs a row of zeros, and
prints what stands in the way, if anything does.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from contextlib import closing

import numpy as np

from outrider.compiler.workshop import child_environment, signal_name
from outrider.runtime.bundle import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.engines import open_engine
from outrider.runtime.engines.ncnn_file import NcnnFile, NcnnTensor
from outrider.runtime.errors import OutriderError, ToolchainError, UnsupportedError
from outrider.runtime.target import Requirements

TIMEOUT_S = 300


def try_out(data: bytes) -> None:
    """Run the artifact once. Raises UnsupportedError where ncnn cannot, ToolchainError where it is missing or slow."""
    if importlib.util.find_spec("ncnn") is None:
        raise ToolchainError("converted models are tried out with ncnn", hint="pip install 'outrider[compiler-ncnn]'")
    command, environment = [sys.executable, "-m", __name__], child_environment()
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT_S, check=False, env=environment)
    except subprocess.TimeoutExpired as e:
        raise ToolchainError(f"ncnn did not run the converted model within {TIMEOUT_S} s") from e
    except OSError as e:
        raise ToolchainError(f"{command[0]} cannot be started: {e.strerror}") from e
    found = done.stdout.decode(errors="replace").strip()
    if found:
        raise UnsupportedError(f"ncnn cannot run the model: {found}")
    if done.returncode < 0:
        raise UnsupportedError(f"ncnn crashed ({signal_name(-done.returncode)}) on the converted model")
    if done.returncode != 0:
        message = done.stderr.decode(errors="replace").strip()[-2000:]
        raise ToolchainError(f"the converted model cannot be tried out: {message}")


def problem(data: bytes) -> str | None:
    """What stands in the way of the artifact, in words: layers that ncnn lacks, or what its first run met."""
    import ncnn

    file = NcnnFile.unpack(data)
    kinds = [line.split()[0] for line in file.graph.decode().splitlines()[2:] if line.strip()]
    lacking = [kind for kind in dict.fromkeys(kinds) if ncnn.create_layer(kind) is None]
    if lacking:
        return f"it has no layer {', '.join(lacking)}"
    signature = Signature(inputs=_specs(file.plan.inputs), outputs=_specs(file.plan.outputs), predict="")
    entry = ArtifactEntry(
        path="the converted model",
        size=len(data),
        sha256="0" * 64,
        format="ncnn",
        abi=1,
        engine="ncnn",
        package="ncnn",
        triple=None,
        needs=Requirements(),
        inputs=tuple(spec.name for spec in signature.inputs),
        outputs=tuple(spec.name for spec in signature.outputs),
        candidate="",
    )
    try:
        with closing(open_engine(entry, data, signature)) as engine:
            rows = zip(entry.inputs, file.plan.inputs, strict=True)
            engine.run({name: np.zeros((1, *tensor.shape), np.float32) for name, tensor in rows})
    except OutriderError as e:
        return str(e)
    return None


def _specs(parts: tuple[NcnnTensor, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=part.blob, dtype="float32", shape=(None, *part.shape)) for part in parts)


if __name__ == "__main__":
    found = problem(sys.stdin.buffer.read())
    sys.stdout.write(found or "")
