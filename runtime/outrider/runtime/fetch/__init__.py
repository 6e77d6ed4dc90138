"""Fetching a bundle's bytes: resumable, from untrusted sources, into space that was reserved first."""

from outrider.runtime.fetch.blocks import BlockFile, allocated_bytes
from outrider.runtime.fetch.http import HttpSource
from outrider.runtime.fetch.mqtt import BlockChannel, MqttSource
from outrider.runtime.fetch.source import Source, Stop, fetch_bundle

__all__ = [
    "BlockChannel",
    "BlockFile",
    "HttpSource",
    "MqttSource",
    "Source",
    "Stop",
    "allocated_bytes",
    "fetch_bundle",
]
