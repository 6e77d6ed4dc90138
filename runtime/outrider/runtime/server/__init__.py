"""The local inference API: Open Inference Protocol v2 as JSON, on loopback TCP and a Unix socket at once.

`http` moves bytes and knows no model, `protocol` turns JSON tensors into arrays and back, `routes` is the table of
what can be asked.
"""

from __future__ import annotations

from outrider.runtime.server.http import HttpServer, Limits
from outrider.runtime.server.routes import Routes

__all__ = ["HttpServer", "Limits", "Routes"]
