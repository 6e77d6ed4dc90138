"""A folder of images as calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadDataError, UsageError

Image = NDArray[np.uint8]

ARRAYS = ".npy"
PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})


def read_folder(folder: Path) -> list[Image]:
    """All images of a folder, by name: `.npy` files of uint8 [h, w, 3] or [n, h, w, 3], and pictures as RGB.

    Other files are passed over. Pictures need Pillow. Raises BadDataError, UsageError where it is missing.
    """
    images: list[Image] = []
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if suffix == ARRAYS:
            images += _arrays(path)
        elif suffix in PICTURES:
            images.append(_picture(path))
    if not images:
        raise BadDataError(f"{folder} holds no images", hint=f"it may hold {ARRAYS} and {', '.join(sorted(PICTURES))}")
    return images


def _arrays(path: Path) -> list[Image]:
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as e:
        raise BadDataError(f"{path} is not a readable .npy file: {e}") from e
    if found.dtype != np.uint8 or found.ndim not in (2, 3, 4):
        raise BadDataError(f"{path} holds {found.dtype} of shape {found.shape}; expected images, uint8 [h, w, 3]")
    return list(found) if found.ndim == 4 else [found]


def _picture(path: Path) -> Image:
    try:
        from PIL import Image as Pillow
    except ModuleNotFoundError as e:
        raise UsageError(f"{path} needs the package pillow", hint="pip install pillow") from e
    try:
        with Pillow.open(path) as opened:
            return np.asarray(opened.convert("RGB"), np.uint8)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as e:
        raise BadDataError(f"{path} is not a readable picture: {e}") from e
