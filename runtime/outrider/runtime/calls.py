"""Calls of a model, kept side by side in one array a tensor.

Axis 0 of such an array counts rows where the model is batched, so that any part of it is a call too; of any other model
it counts whole calls, each of which has the tensor's own shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.bundle.manifest import Signature
from outrider.runtime.errors import EngineFault

Array = NDArray[Any]
Arrays = Mapping[str, Array]


def count_calls(arrays: Arrays) -> int:
    """How many rows or calls the arrays hold; 1 where a model takes nothing."""
    return len(next(iter(arrays.values()), (None,)))


def pick_calls(arrays: Arrays, which: slice | Array) -> dict[str, Array]:
    """These rows or calls, in the same form."""
    return {name: np.ascontiguousarray(array[which]) for name, array in arrays.items()}


def one_call(arrays: Arrays, number: int, *, batched: bool) -> dict[str, Array]:
    """Row or call `number`, as a session takes it."""
    if batched:
        return {name: array[number : number + 1] for name, array in arrays.items()}
    return {name: np.asarray(array[number]) for name, array in arrays.items()}


def run_calls(run: Callable[[dict[str, Array]], Arrays], arrays: Arrays, *, batched: bool) -> dict[str, Array]:
    """The outputs in the same form: all rows in one call, or every call by itself.

    Raises EngineFault where the shapes of outputs differ from call to call, so that they fit in no array.
    """
    if batched:
        return dict(run(dict(arrays)))
    found = [run(one_call(arrays, number, batched=False)) for number in range(count_calls(arrays))]
    try:
        return {name: np.stack([outputs[name] for outputs in found]) for name in found[0]}
    except ValueError as e:
        raise EngineFault("the outputs of different calls differ in shape") from e


def rows_of_call(signature: Signature) -> int | None:
    """How many rows axis 0 of every tensor counts, where a model that is not batched has it fixed; None elsewhere."""
    sizes = {spec.shape[0] if spec.shape else None for spec in (*signature.inputs, *signature.outputs)}
    return None if signature.batched or len(sizes) != 1 else sizes.pop()
