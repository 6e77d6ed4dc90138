"""What a source of bundle bytes is, and how several of them fetch one bundle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from outrider.runtime.errors import DigestMismatchError, UnavailableError
from outrider.runtime.fetch.blocks import BlockFile
from outrider.runtime.messages import SlotDesired

log = logging.getLogger(__name__)

Stop = Callable[[], bool]
"""Asked often by long work: True means give up now, in an orderly way."""


class Source(Protocol):
    """Somewhere to get a bundle's blocks from. Nothing that it gives is trusted."""

    name: str

    def fetch(self, wanted: SlotDesired, blocks: BlockFile, stop: Stop) -> None:
        """Write the missing blocks. Returns when none is missing or `stop()` is true.

        Raises UnavailableError where this source cannot give them now; StorageError where the disk fails.
        """


def fetch_bundle(sources: Sequence[Source], wanted: SlotDesired, blocks: BlockFile, stop: Stop) -> bool:
    """Fetch what is missing from the first source that has it, then check the digest of the whole.

    True when the bundle is complete and its digest holds; False when `stop()` ended it. Raises UnavailableError where
    no source could finish, DigestMismatchError (the fetched file is deleted), StorageError.
    """
    trouble: list[str] = []
    for source in sources:
        if blocks.complete or stop():
            break
        try:
            source.fetch(wanted, blocks, stop)
        except UnavailableError as e:
            log.info("fetching bundle %s from %s stopped: %s", wanted.bundle[:16], source.name, e)
            trouble.append(f"{source.name}: {e}")
        finally:
            blocks.flush()
    if not blocks.complete:
        if stop():
            return False
        raise UnavailableError("; ".join(trouble) or "there is no source to fetch from")
    found = blocks.sha256()
    if found != wanted.bundle:
        blocks.delete()
        raise DigestMismatchError(f"fetched {found[:16]}, but the desired document names {wanted.bundle[:16]}")
    return True
