"""What a net is, and how one that is defined in torch becomes ONNX: exported once, then kept in the cache."""

from __future__ import annotations

import hashlib
import inspect
import io
import logging
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from benchmarks.networks.samples import one_by_one
from numpy.typing import NDArray

from outrider.runtime.durable import write_file
from outrider.runtime.errors import UnavailableError
from outrider.trainer.data.cache import cache_folder

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]
#: Input name -> array; one call's, or of `n` samples along the first axis.
Feeds = Mapping[str, Array]

_OPSET = 18
_MAKERS = ("torch", "onnx", "onnxscript")  # whose versions decide what an export looks like
_CALIBRATION_ROUNDS, _CALIBRATION_BATCH = 3, 8


@dataclass(frozen=True)
class Samples:
    """Inputs to calibrate on and to hold out, [n, ...] each, with int64 [n] labels where the net was really trained."""

    calibration: Feeds
    held_out: Feeds
    calibration_labels: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Net:
    """A network: its ONNX file, real inputs, and the torch module it was exported from.

    `shapes` are those of one call, batch 1; the file may leave some of these dimensions free. `labels` are those of
    the held-out samples, where they are true ones. `module` is None where there is only the file.
    """

    name: str
    description: str
    onnx: bytes
    shapes: Mapping[str, tuple[int, ...]]
    calibration: Feeds
    held_out: Feeds
    calibration_labels: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None
    module: Callable[[], torch.nn.Module] | None = field(default=None, repr=False)

    def calls(self, feeds: Feeds | None = None) -> list[dict[str, Array]]:
        """The held-out samples (or `feeds`) one by one, each with a batch axis of 1."""
        chosen = self.held_out if feeds is None else feeds
        return list(one_by_one(chosen))

    def torch_module(self) -> torch.nn.Module:
        """The module, in eval mode. Raises UnavailableError where the net comes as an ONNX file only."""
        if self.module is None:
            raise UnavailableError(f"{self.name} comes as an ONNX file only", hint="there is no torch module of it")
        return self.module()

    def reference(self, feeds: Feeds | None = None) -> list[list[Array]]:
        """What torch makes of the held-out samples (or `feeds`); ONNX Runtime, unoptimised, where there is no module.

        One list of outputs a sample, in the order of the file.
        """
        calls = self.calls(feeds)
        return _by_onnxruntime(self.onnx, calls) if self.module is None else _by_torch(self.module(), calls)


class Source(ABC):
    """Where a net comes from."""

    description: ClassVar[str]
    #: Input name -> shape of one call.
    shapes: ClassVar[dict[str, tuple[int, ...]]]

    @abstractmethod
    def samples(self) -> Samples:
        """Seeded, or real, inputs."""

    @abstractmethod
    def net(self, name: str) -> Net:
        """The whole net."""


class Defined(Source):
    """A net that is defined in torch. What `prepare` leaves in its parameters is cached together with the export."""

    outputs: ClassVar[tuple[str, ...]] = ("y",)

    @abstractmethod
    def architecture(self) -> torch.nn.Module:
        """The module with fresh parameters, drawn from torch's global generator, which is seeded."""

    @abstractmethod
    def prepare(self, module: torch.nn.Module, samples: Samples) -> None:
        """Train it, or make its statistics sane."""

    def net(self, name: str) -> Net:
        """From the cache, or built, exported and cached."""
        _need_torch()
        samples = self.samples()
        stem = cache_folder() / "nets" / f"{name}-{self._key()}"
        if not (_file(stem, "onnx").is_file() and _file(stem, "pt").is_file()):
            self._make(stem, samples)
        return Net(
            name=name,
            description=self.description,
            onnx=_file(stem, "onnx").read_bytes(),
            shapes=self.shapes,
            calibration=samples.calibration,
            held_out=samples.held_out,
            calibration_labels=samples.calibration_labels,
            labels=samples.labels,
            module=lambda: self._load(_file(stem, "pt")),
        )

    def _make(self, stem: Path, samples: Samples) -> None:
        import torch

        with torch.random.fork_rng(), one_thread():
            torch.manual_seed(0)
            module = self.architecture()
            self.prepare(module, samples)
            module.eval()
            data = self._export(module, samples)
        stem.parent.mkdir(parents=True, exist_ok=True)
        parameters = io.BytesIO()
        torch.save(module.state_dict(), parameters)
        write_file(_file(stem, "pt"), parameters.getvalue())
        write_file(_file(stem, "onnx"), data)

    def _load(self, path: Path) -> torch.nn.Module:
        import torch

        with torch.random.fork_rng():
            module = self.architecture()
        module.load_state_dict(torch.load(path, weights_only=True))
        return module.eval()

    def _export(self, module: torch.nn.Module, samples: Samples) -> bytes:
        import torch

        example = tuple(torch.from_numpy(np.ascontiguousarray(samples.calibration[name][:1])) for name in self.shapes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own exporter's internals
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # and logs that torchvision is not there
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=_OPSET,
                input_names=list(self.shapes),
                output_names=list(self.outputs),
                external_data=False,
                optimize=True,
                verbose=False,
            )
        assert program is not None
        return bytes(program.model_proto.SerializeToString(deterministic=True))

    def _key(self) -> str:
        """Changes with the definition and with whatever makes the file."""
        texts = [Path(inspect.getfile(one)).read_text("utf-8") for one in (type(self), Defined)]
        versions = [metadata.version(name) for name in _MAKERS]
        return hashlib.sha256("\n".join((*texts, *versions)).encode()).hexdigest()[:16]


def calibrate_batch_norms(module: torch.nn.Module, inputs: Array) -> None:
    """Give every batch norm an affine part of its own, and the statistics of `inputs` float32 [n, ...].

    Random weights then make activations as a trained net has them: of the order of 1 in every layer.
    """
    import torch

    norms = [one for one in module.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    module.train()
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.6, 1.4)
            norm.bias.uniform_(-0.3, 0.3)
            norm.momentum = None  # the plain mean of all batches
        for i in range(_CALIBRATION_ROUNDS):
            start = i * _CALIBRATION_BATCH
            module(torch.from_numpy(inputs[start : start + _CALIBRATION_BATCH]))
    module.eval()


def pictures(count: int, channels: int, side: int, seed: int) -> NDArray[np.float32]:
    """Float32 [count, channels, side, side] with coarse and fine structure, like photos; mean 0, deviation 1."""
    rng = np.random.default_rng(seed)
    total = np.zeros((count, channels, side, side))
    for cells in (3, 6, 12, 24, 48):
        grid = rng.normal(size=(count, channels, cells, cells)) / np.sqrt(cells)
        index = np.arange(side) * cells // side
        total += grid[:, :, index][:, :, :, index]
    total += 0.05 * rng.normal(size=total.shape)
    mean, deviation = total.mean(axis=(1, 2, 3), keepdims=True), total.std(axis=(1, 2, 3), keepdims=True)
    return ((total - mean) / deviation).astype(np.float32)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, torch runs on one thread, and so gives the same results whatever the machine's number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")


def _need_torch() -> None:
    for name in _MAKERS:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError as e:
            hint = f"{sys.executable} -m pip install 'outrider[bench]'"
            raise UnavailableError(f"{name} is not installed, and the nets are made with it", hint=hint) from e


def _by_torch(module: torch.nn.Module, calls: Sequence[Feeds]) -> list[list[Array]]:
    import torch

    found = []
    with torch.inference_mode(), one_thread():
        for feed in calls:
            result = module(*(torch.from_numpy(array) for array in feed.values()))
            outputs = result if isinstance(result, tuple) else (result,)
            found.append([one.numpy() for one in outputs])
    return found


def _by_onnxruntime(data: bytes, calls: Sequence[Feeds]) -> list[list[Array]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [[np.asarray(one) for one in session.run(None, dict(feed))] for feed in calls]
