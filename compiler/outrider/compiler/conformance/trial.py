"""One test of ONNX's suite through one backend, as a user's model would go: read, built, verified, opened and run."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from outrider.compiler.backends import backend
from outrider.compiler.cache import Cache
from outrider.compiler.conformance.cases import Case, DataSet, find_case
from outrider.compiler.conformance.results import Verdict
from outrider.compiler.frontends import ReadOptions, read_model
from outrider.compiler.making import Workroom, make
from outrider.compiler.model import Array
from outrider.compiler.onnx_session import open_session
from outrider.compiler.passes.graph import inputs_of
from outrider.compiler.pipeline import compile_model
from outrider.compiler.samples import examples, make_samples
from outrider.compiler.task import Limits, Made, Task
from outrider.compiler.verify import source_truth
from outrider.runtime import load
from outrider.runtime.bundle import Signature
from outrider.runtime.errors import BadModelError, OutriderError, ParityError, UnsupportedError
from outrider.runtime.target import Target
from outrider.runtime.tensors import check_inputs, derive

PLAIN = "onnxruntime"  # ONNX Runtime itself, without Outrider, among the backends
# Tuning records that hold nothing: what is computed does not depend on them. `compile_model` would want real ones.
_UNTUNED = {"tvm": b"{}"}
_MOST_CHARS = 140  # of a reason
_PATH = re.compile(r"(?<![\w.])(/[\w.+-]+)+/(?=[\w.+-])")
_TEMPORARY = re.compile(r"\b(tmp|outrider-?)[a-z0-9_]{8}\b/?")
_RUNNING = re.compile(r"_\d{6,}\b")


class _WrongError(Exception):
    """What came out is not what the test expects."""


def examine(group: str, name: str, backend_name: str, whole: bool = True) -> Verdict:
    """Take a test through a backend, or PLAIN: `whole` by `compile_model` and `load`, else by the same steps
    without the bundle, and without measuring what is built.

    Raises NotFoundError for a test that there is not.
    """
    case = find_case(group, name)
    try:
        if backend_name == PLAIN:
            _run_plain(case)
        elif whole and backend_name not in _UNTUNED:
            _compile_and_load(case, backend_name)
        else:
            _make_and_run(case, backend_name)
    except _WrongError as e:
        return Verdict(outcome="wrong", reason=brief(str(e)))
    except (UnsupportedError, BadModelError) as e:
        return Verdict(outcome="refused", reason=brief(_said(e)))
    except ParityError as e:
        return Verdict(outcome="differs", reason=brief(e.message.partition("; row ")[0]))
    except OutriderError as e:
        return Verdict(outcome="failed", reason=brief(f"{type(e).__name__}: {_said(e)}"))
    except Exception as e:  # of ONNX Runtime, where it is called directly; elsewhere a fault of this compiler
        return Verdict(outcome="failed", reason=brief(f"{type(e).__name__}: {e}"))
    return Verdict(outcome="passed")


def brief(text: str) -> str:
    """The first line, of bounded length and the same each time: without folders, temporary names, running numbers."""
    line = (text.strip().splitlines() or [""])[0].strip().removesuffix(":")
    for pattern in (_PATH, _TEMPORARY, _RUNNING):
        line = pattern.sub("", line)
    return line if len(line) <= _MOST_CHARS else line[: _MOST_CHARS - 1] + "…"


def _said(error: OutriderError) -> str:
    """The message; of what no backend takes, the backend's own reason."""
    return error.hint if error.message.startswith("no backend compiles") and error.hint else error.message


# The ways through --------------------------------------------------------------------------------------------------


def _run_plain(case: Case) -> None:
    session = open_session(case.model.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    for data in case.data:
        _check(case, data, session.run(None, dict(zip(names, data.inputs, strict=False))))


def _compile_and_load(case: Case, backend_name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.orb"
        compile_model(
            case.model,
            out=path,
            name="conformance",
            calibration=_calibration(case),
            backends=[backend_name],
            precisions=["fp32"],
            cache=False,
        )
        with load(path) as session:
            for data in case.data:
                found = session.run(_inputs(case, data))
                _check(case, data, [found[value.name] for value in case.model.graph.output])


def _make_and_run(case: Case, backend_name: str) -> None:
    model = read_model(case.model, ReadOptions(examples=examples(_calibration(case))))
    samples = make_samples(model, _calibration(case))
    limits = Limits(backends=(backend_name,), precisions=("fp32",))
    task = Task(model, _host(), _host(), samples, source_truth(model, samples), limits=limits, tuning=_UNTUNED)
    maker = backend(backend_name)
    reason = maker.refuses(task.order)
    if reason is not None:
        raise UnsupportedError(f"{backend_name}: {reason}")
    with ExitStack() as stack:
        made = make(Workroom(task, Cache(None), stack), backend_name, maker, maker.rule(task.order)[-1])
        assert isinstance(made, Made), made  # what is built for this machine runs here
        for data in case.data:
            found = _outputs(made, check_inputs(_inputs(case, data), model.signature), model.signature)
            _check(case, data, [found[value.name] for value in case.model.graph.output])


def _outputs(made: Made, inputs: dict[str, Array], signature: Signature) -> dict[str, Array]:
    computed = made.engine.run(inputs)
    derived = [spec.name for spec in signature.outputs if spec.name not in computed]
    return {**computed, **{name: derive(name, computed, signature) for name in derived}}


@lru_cache
def _host() -> Target:
    from outrider.targets import get_target

    return get_target("host")


def _inputs(case: Case, data: DataSet) -> dict[str, Array]:
    given = zip(inputs_of(case.model.graph), data.inputs, strict=False)
    return {known.name: np.asarray(value) for known, value in given}


def _calibration(case: Case) -> dict[str, Array] | None:
    """The test's own inputs."""
    kinds = [value.type.WhichOneof("value") for value in case.model.graph.input]
    plain = all(kind == "tensor_type" for kind in kinds)  # others are refused when the model is read
    return _inputs(case, case.data[0]) if plain and kinds and case.data else None


# What must come out ------------------------------------------------------------------------------------------------


def _check(case: Case, data: DataSet, found: Sequence[Any]) -> None:
    """Raises _WrongError where an output is not what the test expects."""
    if len(found) != len(data.outputs):
        raise _WrongError(f"gave {len(found)} outputs, not {len(data.outputs)}")
    for number, (value, wanted) in enumerate(zip(found, data.outputs, strict=True)):
        problem = _problem(value, wanted, case.rtol, case.atol)
        if problem:
            raise _WrongError(f"output {number} {problem}")


def _problem(value: Any, wanted: Any, rtol: float, atol: float) -> str | None:
    """What is wrong with a value, in words: the rules are those of onnx's own runner."""
    if wanted is None or value is None:
        return None if wanted is value else f"is {type(value).__name__}, not {type(wanted).__name__}"
    if isinstance(wanted, list):
        if not isinstance(value, list) or len(value) != len(wanted):
            return f"is no sequence of {len(wanted)}"
        return next(filter(None, (_problem(*pair, rtol, atol) for pair in zip(value, wanted, strict=True))), None)
    value = np.asarray(value)
    if value.shape != wanted.shape:
        return f"has the shape {value.shape}, not {wanted.shape}"
    if wanted.dtype.kind in "OUS":
        same = bool((value.astype(str) == wanted.astype(str)).all())
        return None if same else "differs in its text"
    if value.dtype != wanted.dtype:
        return f"is {value.dtype}, not {wanted.dtype}"
    if value.dtype.kind == "V" or value.dtype.name == "bfloat16":  # types that numpy does not compute with
        rtol = max(rtol, 2**-6)  # two units in the last place of bfloat16
        value, wanted = value.astype(np.float32), wanted.astype(np.float32)
    with np.errstate(all="ignore"):
        close = np.isclose(value, wanted, rtol=rtol, atol=atol, equal_nan=True)
    return None if close.all() else f"is off in {int(np.count_nonzero(~close))} of {close.size} values"
