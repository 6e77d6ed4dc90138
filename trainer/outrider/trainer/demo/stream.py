"""Sends rows to the devices' local inference API, as an application on the device would."""

from __future__ import annotations

import http.client
import json
import math
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.api_client import FleetClient
from outrider.runtime.api_client.types import LabelItem
from outrider.runtime.errors import Fault, UnavailableError
from outrider.trainer.data.table import Table
from outrider.trainer.demo.scenario import Scenario

Columns = Mapping[str, NDArray[Any]]


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class Answer:
    """What a device predicted for a batch: one score and one label a row, and the bundle version that did."""

    version: str
    scores: NDArray[np.float64]
    labels: list[str]


class DeviceClient:
    """The inference API of one device, over its Unix socket."""

    def __init__(self, name: str, socket_path: Path, timeout_s: float = 30.0) -> None:
        self.name = name
        self._connection = UnixConnection(socket_path, timeout_s)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def infer(self, columns: Columns, ids: Sequence[str]) -> Answer:
        """Predict a batch of raw rows. Raises UnavailableError without an answer, Fault on a refusal."""
        inputs = [_tensor(name, column) for name, column in columns.items()]
        body = json.dumps({"inputs": inputs, "parameters": {"ids": list(ids)}})
        try:
            self._connection.request("POST", "/v2/models/main/infer", body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            payload = response.read()
        except (OSError, http.client.HTTPException) as e:
            self._connection.close()
            raise UnavailableError(f"{self.name} does not answer: {e}") from e
        if response.status != http.client.OK:
            raise Fault(
                f"{self.name} refused a batch with {response.status}: {payload[:300].decode('utf-8', 'replace')}"
            )
        return _parse(json.loads(payload))


def _tensor(name: str, column: NDArray[Any]) -> dict[str, Any]:
    if column.dtype.kind in "OUS":
        return {
            "name": name,
            "shape": [len(column)],
            "datatype": "BYTES",
            "data": ["" if v is None else str(v) for v in column],
        }
    values = [None if math.isnan(v) else v for v in column.astype(np.float64).tolist()]
    return {"name": name, "shape": [len(column)], "datatype": "FP64", "data": values}


def _parse(body: dict[str, Any]) -> Answer:
    outputs = {tensor["name"]: tensor["data"] for tensor in body["outputs"]}
    return Answer(
        version=body["model_version"],
        scores=np.asarray(outputs["score"], dtype=np.float64),
        labels=[str(label) for label in outputs["label"]],
    )


@dataclass
class Tally:
    """What was streamed in one phase. `right` counts predictions that equal the label."""

    rows: int = 0
    right: int = 0

    @property
    def accuracy(self) -> float:
        """The share of right predictions; NaN before the first row."""
        return self.right / self.rows if self.rows else float("nan")


class Streamer:
    """Deals rows out to the devices at a steady pace, and posts their labels some batches later.

    The rows seen so far are landed before their labels are posted, so that whoever is told of a breach by the
    labels finds the rows that go with them.
    """

    BATCH = 300
    LABEL_DELAY_BATCHES = 5
    LAND_EVERY_BATCHES = 4

    def __init__(self, scenario: Scenario, folder: Path, devices: Sequence[DeviceClient], fleet: FleetClient) -> None:
        self._scenario = scenario
        self._folder = folder
        self._devices = devices
        self._fleet = fleet
        self._seen: list[Table] = []
        self._waiting: deque[list[LabelItem]] = deque()
        self._batches = 0

    def send(self, rows: Table, tallies: dict[str, Tally]) -> None:
        """Send one batch: each device gets an equal share. Labels of an earlier batch are posted.

        `tallies` counts by the bundle version that answered.
        """
        truth = self._scenario.classes(rows)
        labels: list[LabelItem] = []
        for position, device in enumerate(self._devices):
            share = slice(position, len(rows), len(self._devices))
            ids = [f"{device.name}-{self._batches}-{row}" for row in range(len(truth[share]))]
            answer = device.infer(rows.take(share).select(self._scenario.raw_columns), ids)
            tally = tallies.setdefault(answer.version, Tally())
            tally.rows += len(ids)
            tally.right += int(np.sum(np.asarray(answer.labels, dtype=object) == truth[share]))
            labels += [LabelItem(id=name, label=str(label)) for name, label in zip(ids, truth[share], strict=True)]
        self._seen.append(rows)
        self._waiting.append(labels)
        self._batches += 1
        if self._batches % self.LAND_EVERY_BATCHES == 0:
            self._scenario.land(self._folder, *self._seen)
        if len(self._waiting) > self.LABEL_DELAY_BATCHES:
            self._fleet.post_labels(self._waiting.popleft())

    def flush(self) -> None:
        """Land everything and post all labels that wait."""
        self._scenario.land(self._folder, *self._seen)
        while self._waiting:
            self._fleet.post_labels(self._waiting.popleft())
