"""A program of torch.export with names for its inputs and outputs, and how to call what it was made of."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outrider.compiler.model import Array
from outrider.runtime.errors import UnsupportedError

# Operators whose argument at that place says that they are training.
_TRAINING = {
    "aten.batch_norm.default": 5,
    "aten.dropout.default": 2,
    "aten.dropout_.default": 2,
    "aten.feature_dropout.default": 2,
    "aten.alpha_dropout.default": 2,
}
OUTPUT = "output"  # the name of a single output, and with a number behind it of those of a tuple


@dataclass(frozen=True)
class Leaf:
    """One value that a program takes: a tensor by its name, or where that is None a constant."""

    name: str | None
    constant: Any = None


@dataclass(frozen=True)
class Program:
    """`exported` is the `torch.export.ExportedProgram`; names of `outputs` are those of its tensors, in order."""

    exported: Any
    leaves: tuple[Leaf, ...]
    output_names: tuple[str, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the tensors that it takes, in order."""
        return tuple(leaf.name for leaf in self.leaves if leaf.name is not None)

    def arguments(self, values: Mapping[str, Array], module: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arrays by name as positional and named arguments of the module, copied to where it is."""
        import torch.utils._pytree as pytree

        device = device_of(module)
        flat = [leaf.constant if leaf.name is None else tensor_of(values[leaf.name]).to(device) for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(flat, self.exported.call_spec.in_spec)
        return tuple(args), dict(kwargs)

    def outputs(self, result: Any) -> dict[str, Any]:
        """What the module gave, as tensors by name."""
        import torch
        import torch.utils._pytree as pytree

        tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        return dict(zip(self.output_names, map(_real, tensors), strict=True))

    def examples(self) -> dict[str | None, Array]:
        """The arrays that it was exported with; none where it does not hold them."""
        import torch.utils._pytree as pytree

        if self.exported.example_inputs is None:
            return {}
        flat = pytree.tree_leaves(self.exported.example_inputs)
        found = zip(self.leaves, flat, strict=True)
        return {leaf.name: array_of(value) for leaf, value in found if leaf.name is not None}


def program_of(exported: Any, names: Sequence[str] | None = None) -> Program:
    """Name what an exported program takes and gives. `names`: of its inputs; None for its own.

    Raises UnsupportedError for inputs and outputs that are neither tensors nor constants.
    """
    from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

    signature = exported.graph_signature
    given = [spec.arg for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT]
    own = [argument.name for argument in given] if names is None else list(names)
    leaves: list[Leaf] = []
    for name, argument in zip(own, given, strict=True):
        if isinstance(argument, ConstantArgument):
            leaves.append(Leaf(None, argument.value))
        elif isinstance(argument, TensorArgument):
            leaves.append(Leaf(name))
        else:
            raise UnsupportedError(f"the program takes {name!r} as a number, not a tensor", hint="make it a constant")
    results = [spec.arg for spec in signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    taken = {leaf.name for leaf in leaves}
    outputs: list[str] = []
    for path, argument in zip(_output_paths(exported), results, strict=True):
        if isinstance(argument, TensorArgument):
            outputs.append(_free(path, taken))
            taken.add(outputs[-1])
        elif not isinstance(argument, ConstantArgument) or argument.value is not None:
            raise UnsupportedError(
                f"the module returns {path!r} as a number, not a tensor", hint="return tensors, and tuples or dicts"
            )
    if not outputs:
        raise UnsupportedError("the module returns no tensor")
    return Program(exported, tuple(leaves), tuple(outputs))


def _output_paths(exported: Any) -> list[str]:
    """A name for each thing that is returned: the keys and places that lead to it."""
    import torch.utils._pytree as pytree

    spec = exported.call_spec.out_spec
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths, _ = pytree.tree_flatten_with_path(tree)
    return [_path_name(path) for path, _ in paths]


def _path_name(path: Sequence[Any]) -> str:
    parts = [next(str(getattr(key, field)) for field in ("key", "idx", "name") if hasattr(key, field)) for key in path]
    return "_".join(parts if parts and not parts[0].isdigit() else [OUTPUT, *parts])


def _free(wish: str, taken: set[str | None]) -> str:
    name, number = wish, 1
    while name in taken:
        number += 1
        name = f"{wish}_{number}"
    return name


# Running --------------------------------------------------------------------------------------------------------


def tensor_of(array: Array) -> Any:
    """A copy of an array as a tensor."""
    import torch

    return torch.from_numpy(np.array(array))


def array_of(tensor: Any) -> Array:
    """A tensor's values; of a type that numpy lacks, as float32."""
    held = tensor.detach().cpu()
    try:
        values: Array = np.ascontiguousarray(held.numpy())
    except TypeError:
        return array_of(held.float())
    return values.reshape(tuple(held.shape))


def _real(tensor: Any) -> Any:
    """Complex numbers as pairs along one more axis, as the exporter has them."""
    import torch

    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def device_of(module: Any) -> Any:
    """Where a module's weights are."""
    import torch

    held = next((tensor for tensors in (module.parameters(), module.buffers()) for tensor in tensors), None)
    return torch.device("cpu") if held is None else held.device


@contextlib.contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """The module as it predicts: in eval mode, without gradients, by plain operators; then as it was before.

    torch's fused kernels for transformers give other values for what is masked than the operators they stand for.
    """
    import torch

    modes = [(one, one.training) for one in module.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for one, _ in modes:
        one.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for one, mode in modes:
            one.training = mode
        torch.backends.mha.set_fastpath_enabled(fused)


def run_eagerly(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the module itself returns, computed on one thread. Raises whatever it raises."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with evaluating(module), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the module's own code, which its author knows
            return module(*args, **kwargs)
    finally:
        torch.set_num_threads(threads)


def check_stateless(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Call the module once. Raises UnsupportedError where that changes its buffers, and whatever the module raises."""
    import torch

    before = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    changed: list[str] = []
    try:
        run_eagerly(module, args, kwargs)
    finally:
        for name, buffer in module.named_buffers():
            if name in before and not _same(buffer, before[name]):
                changed.append(name)
                with torch.no_grad():
                    buffer.copy_(before[name])
    if changed:
        raise UnsupportedError(
            f"{type(module).__name__}.forward changes its buffer {changed[0]!r}, so a call depends on those before it",
            hint="take the state as an input and return the new one",
        )


def _same(one: Any, other: Any) -> bool:
    import torch

    same: bool = torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
    return same


def check_evaluating(exported: Any) -> None:
    """Raises UnsupportedError for a program that was exported from a module in training mode."""
    for node in exported.graph.nodes:
        place = _TRAINING.get(str(node.target), 0)
        if place and len(node.args) > place and node.args[place] is True:
            raise UnsupportedError(
                f"the program was exported in training mode: it has {node.target}",
                hint="export it again, of module.eval()",
            )


def fingerprint(module: Any, data: bytes) -> str:
    """SHA-256, hexadecimal, of a module's state and of the graph that was exported from it."""
    import torch

    state = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    state.update(data)
    return state.hexdigest()
