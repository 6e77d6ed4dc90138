"""The device's disk: slots as folders and links, the journal and the outbox in SQLite."""

from outrider.runtime.store.outbox import Outbox, OutMessage
from outrider.runtime.store.store import Store

__all__ = ["OutMessage", "Outbox", "Store"]
