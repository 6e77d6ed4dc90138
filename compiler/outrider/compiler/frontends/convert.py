"""What the tree frontends share: the way into Treelite, categories that are no numbers, and digests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from outrider.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import treelite

# Where in Treelite's sources an error was raised: "[15:12:58] /project/src/x.cc:431: Check failed: …: "
_ORIGIN = re.compile(r"^\[[\d:]+\] \S+: (Check failed: .*?: )?")


def through_treelite(what: str, convert: Callable[[], treelite.Model]) -> treelite.Model:
    """Run a Treelite import, naming the model where Treelite does not know it. Raises UnsupportedError."""
    import treelite

    try:
        return convert()
    except (treelite.TreeliteError, NotImplementedError, AssertionError, ValueError, AttributeError) as e:
        detail = next((line for line in reversed(str(e).splitlines()) if line.strip()), type(e).__name__)
        raise UnsupportedError(f"{what} is not supported: {_ORIGIN.sub('', detail.strip())}") from e


def check_categories(what: str, categories: Sequence[object], *, text: bool = False) -> None:
    """Raises UnsupportedError unless the categories of a training frame's column are the integers from 0, in order.

    Only then are they the numbers that the trees hold. `what` names the feature; `text`: they are known to be text.
    """
    if len(categories) == 0 or (not text and list(categories) == list(range(len(categories)))):
        return
    kind = "text" if text or any(isinstance(category, str) for category in categories) else "other than 0, 1, 2, …"
    raise UnsupportedError(
        f"{what} has categories that are {kind}, which are not supported",
        hint="encode them as the integers from 0 before training: a compiled model takes numbers",
    )


def digest(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
