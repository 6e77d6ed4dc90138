"""The nets: one file each, seeded, so that every run and every test has the same. A new one is a line in `NETS`.

>>> from benchmarks.networks.nets import net
>>> tiny = net("tiny")
>>> tiny.onnx, tiny.calibration, tiny.held_out, tiny.labels, tiny.torch_module()
"""

from __future__ import annotations

import pkgutil
from functools import cache

from benchmarks.networks.nets.base import Feeds, Net, Source

#: name -> "module:class", in the order of the report.
NETS: dict[str, str] = {
    "tiny": "benchmarks.networks.nets.tiny:Tiny",
    "digits": "benchmarks.networks.nets.digits:Digits",
    "mbv2": "benchmarks.networks.nets.mbv2:MobileNet",
    "r18": "benchmarks.networks.nets.r18:ResNet",
    "encoder": "benchmarks.networks.nets.encoder:Encoder",
    "lstm": "benchmarks.networks.nets.lstm:Lstm",
    "pnet": "benchmarks.networks.nets.mtcnn:PNet",
    "rnet": "benchmarks.networks.nets.mtcnn:RNet",
    "onet": "benchmarks.networks.nets.mtcnn:ONet",
}
#: Those of a quick run.
QUICK = ("tiny", "digits")


@cache
def net(name: str) -> Net:
    """The net of that name; made or fetched at the first call ever, from the cache after that.

    Raises UnavailableError where it has to be fetched and no registry answers, or a package that makes it is missing.
    """
    source: Source = pkgutil.resolve_name(NETS[name])()
    return source.net(name)


__all__ = ["NETS", "QUICK", "Feeds", "Net", "net"]
