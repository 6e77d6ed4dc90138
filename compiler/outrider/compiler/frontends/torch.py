"""torch modules and programs of torch.export. The reference is torch itself: eager, without gradients, one thread.

A module is exported with arrays that it takes, which are calibration's: axis 0 is left free where the module takes any
number of rows, all other sizes are those of the arrays unless `shapes` frees them. What is exported goes on as ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from outrider.compiler.frontends import ReadOptions
from outrider.compiler.frontends.onnx import read_onnx
from outrider.compiler.frontends.torch_errors import first_line
from outrider.compiler.frontends.torch_export import Attempt, attempts, export
from outrider.compiler.frontends.torch_onnx import to_onnx
from outrider.compiler.frontends.torch_program import (
    Program,
    array_of,
    check_evaluating,
    check_stateless,
    fingerprint,
    program_of,
    run_eagerly,
)
from outrider.compiler.frontends.torch_quiet import quiet
from outrider.compiler.model import Array, Model
from outrider.runtime.errors import BadInputError, BadModelError, UnsupportedError


class TorchFrontend:
    """Reads `torch.nn.Module` objects, `torch.export.ExportedProgram` objects and `.pt2` files."""

    def read_object(self, source: Any, options: ReadOptions) -> Model:
        """A module, for which calibration or all sizes are needed; or an exported program."""
        import torch

        if isinstance(source, torch.export.ExportedProgram):
            return _read_program(source, options)
        if isinstance(source, torch.jit.ScriptModule):
            raise UnsupportedError(
                "TorchScript modules are not supported", hint="give the module that it was made of, or torch.export it"
            )
        if not isinstance(source, torch.nn.Module):
            raise UnsupportedError(
                f"torch objects of type {type(source).__name__} are not supported",
                hint="give a torch.nn.Module or a torch.export.ExportedProgram",
            )
        return _read_module(getattr(source, "_orig_mod", source), options)  # what torch.compile wraps

    def read_file(self, path: Path, options: ReadOptions) -> Model:
        """A `.pt2` file. Raises BadInputError unless it is trusted: torch evaluates text and pickles that it holds."""
        import torch

        if not options.trust_pickle:
            raise BadInputError(
                f"{path} is a torch.export program, which can run any code when it is read",
                hint="where you trust its origin: trust_pickle=True, or --trust-pickle",
            )
        try:
            with quiet():
                program = torch.export.load(path)
        except Exception as e:  # zipfile, json, pickle and torch each raise errors of their own
            raise BadModelError(f"{path} is not a readable torch.export program: {first_line(e)}") from e
        return _read_program(program, options)


def _read_module(module: Any, options: ReadOptions) -> Model:
    """The first way to export it that works, with as much left free as can be."""
    failed: UnsupportedError | None = None
    for attempt in attempts(module, options):
        try:
            program = export(module, attempt)
            if program is not None:
                return _model(module, program, type(module).__name__, _with_sizes(options, attempt))
        except UnsupportedError as e:
            failed = failed or e
    assert failed is not None
    raise failed


def _read_program(source: Any, options: ReadOptions) -> Model:
    check_evaluating(source)
    with quiet():
        module = source.module(check_guards=False)
    program = program_of(source)
    own = program.examples()
    if own:
        check_stateless(module, *program.arguments({name: array for name, array in own.items() if name}, module))
    examples = options.examples or own
    return _model(module, program, "exported program", replace(options, examples=examples))


def _with_sizes(options: ReadOptions, attempt: Attempt) -> ReadOptions:
    """What is known of the graph: `shapes` are bound in it, and it takes the arrays that it was exported with."""
    return replace(options, shapes={}, examples=options.examples or dict(attempt.arrays.items()))


def _model(module: Any, program: Program, title: str, options: ReadOptions) -> Model:
    import torch

    data = to_onnx(program, title)
    read = read_onnx(data, options)

    def reference(values: Mapping[str, Array]) -> dict[str, Array]:
        args, kwargs = program.arguments(values, module)
        found = program.outputs(run_eagerly(module, args, kwargs))
        return {name: array_of(tensor) for name, tensor in found.items()}

    return replace(
        read,
        framework="torch",
        framework_version=torch.__version__.partition("+")[0],
        sha256=fingerprint(module, data),
        reference=reference,
    )
