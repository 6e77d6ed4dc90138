"""The MQTT manager: `Manager(database, broker, signer, settings)`, with `start`, `stop` and `wake`.

`link` speaks to the broker, `ingest` and `apply` take in what devices say, `deploy` carries out rollouts, `publish`
and `blocks` send, `drift` and `retrain` evaluate; `manager` holds them together.
"""

from outrider.fleet.manager.manager import Manager

__all__ = ["Manager"]
