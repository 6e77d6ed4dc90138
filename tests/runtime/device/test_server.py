"""The inference API over TCP and a Unix socket, in one process, with a real bundle."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.runtime.bundle import open_bundle
from outrider.runtime.errors import BadConfigError, EngineFault, PortInUseError
from outrider.runtime.models import Array, Live, Models
from outrider.runtime.server import HttpServer, Limits, Routes
from outrider.runtime.server.protocol import DATATYPES, InputTensor, decode_request, decode_tensor, encode_tensor
from outrider.runtime.server.wire import BadRequest, Request, parse_head
from outrider.runtime.session import load

Connect = Callable[[Any], Any]


@dataclass
class Seen:
    """What the server told its observer."""

    ids: list[str] = field(default_factory=list)
    faults: int = 0

    def served(self, live: Live, ids: Sequence[str], outputs: Mapping[str, Array]) -> None:
        self.ids.extend(ids)

    def failed(self, live: Live, error: EngineFault) -> None:
        self.faults += 1


@dataclass
class Running:
    """A server with a bundle in slot `main` and one with a feature plan in slot `raw`."""

    address: tuple[str, int]
    path: Path
    models: Models
    seen: Seen
    routes: Routes


@pytest.fixture(scope="module")
def running(maker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    models, seen = Models(), Seen()
    for slot, made in (("main", maker.make("1")), ("raw", maker.make("2", raw=True))):
        models.put(Live(slot, made.sha256, load(made.path, maker.trust())))
    routes = Routes(models, observer=seen)
    limits = Limits(body_bytes=64 * 1024, request_s=1.0, idle_s=5.0, connections=12)
    server = HttpServer(routes, limits=limits)
    path = tmp_path_factory.mktemp("s") / "api.sock"
    address = server.listen_tcp("127.0.0.1", 0)
    server.listen_unix(path)
    server.start()
    yield Running(address, path, models, seen, routes)
    server.stop()
    models.close()
    assert not path.exists()


@pytest.fixture(params=["tcp", "unix"])
def client(request: pytest.FixtureRequest, running: Running, connect: Connect) -> Any:
    return connect(running.address if request.param == "tcp" else running.path)


def body(data: object, shape: list[int], **extra: Any) -> bytes:
    tensor = {"name": "features", "shape": shape, "datatype": "FP32", "data": data}
    return msgspec.json.encode({"inputs": [tensor], **extra})


def ask(client: Any, method: str, path: str, payload: bytes | None = None) -> tuple[int, Any]:
    status, answer = client.request(method, path, payload)
    return status, msgspec.json.decode(answer)


def test_health_and_metadata_on_one_connection(client: Any, maker: Any) -> None:
    assert ask(client, "GET", "/v2/health/live") == (200, {"live": True})
    assert ask(client, "GET", "/v2/health/ready") == (200, {"ready": True})
    assert ask(client, "GET", "/v2")[1]["name"] == "outrider"
    assert ask(client, "GET", "/v2/models/main/ready") == (200, {"name": "main", "ready": True})
    status, model = ask(client, "GET", "/v2/models/main")
    assert status == 200
    assert model["versions"] == ["1"]
    assert model["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 2], "parameters": {}}]
    assert [(o["name"], o["datatype"]) for o in model["outputs"]] == [("score", "FP32"), ("label", "BYTES")]
    assert model["parameters"]["bundle"] == maker.make("1").sha256


def test_metadata_names_raw_columns(client: Any) -> None:
    inputs = ask(client, "GET", "/v2/models/raw")[1]["inputs"]
    assert [(i["name"], i["datatype"], i["parameters"]["group"]) for i in inputs] == [
        ("features", "FP32", "model"),
        ("amt", "FP64", "raw"),
        ("part", "FP64", "raw"),
        ("at", "FP64", "raw"),
        ("shop", "BYTES", "raw"),
    ]


@pytest.mark.parametrize("data", [[1, 0, 9.5, 0.5], [[1, 0], [9.5, 0.5]]])
def test_infer_flat_and_nested(client: Any, data: object) -> None:
    status, answer = ask(client, "POST", "/v2/models/main/infer", body(data, [2, 2], id="r1"))
    assert status == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("main", "1", "r1")
    score, label = answer["outputs"]
    assert score["datatype"] == "FP32"
    assert score["data"] == pytest.approx([0.1, 0.95])
    assert label == {"name": "label", "shape": [2], "datatype": "BYTES", "data": ["good", "bad"]}


@pytest.mark.parametrize(("at_type", "at"), [("FP64", [0.0, 3600.0]), ("BYTES", ["2025-01-31T12:00:00Z", None])])
def test_infer_from_raw_columns(client: Any, at_type: str, at: list[Any]) -> None:
    tensors = [
        {"name": "amt", "shape": [2], "datatype": "INT64", "data": [0, 100]},
        {"name": "part", "shape": [2], "datatype": "FP64", "data": [1.5, None]},
        {"name": "at", "shape": [2], "datatype": at_type, "data": at},
        {"name": "shop", "shape": [2], "datatype": "BYTES", "data": ["kiosk", None]},
    ]
    status, answer = ask(client, "POST", "/v2/models/raw/infer", msgspec.json.encode({"inputs": tensors}))
    assert status == 200, answer
    assert answer["outputs"][0]["data"] == pytest.approx([0.0, np.log1p(100) / 10], rel=1e-5)
    status, answer = ask(client, "POST", "/v2/models/raw/infer", msgspec.json.encode({"inputs": tensors[:2]}))
    assert status == 400
    assert "at, shop" in answer["error"]


def test_only_the_wanted_outputs(client: Any) -> None:
    payload = body([1, 0], [1, 2], outputs=[{"name": "label"}])
    assert [o["name"] for o in ask(client, "POST", "/v2/models/main/infer", payload)[1]["outputs"]] == ["label"]
    status, answer = ask(client, "POST", "/v2/models/main/infer", body([1, 0], [1, 2], outputs=[{"name": "nope"}]))
    assert (status, answer["error"]) == (400, "there is no output 'nope', there are score, label")


def test_version_in_the_path(client: Any) -> None:
    assert ask(client, "POST", "/v2/models/main/versions/1/infer", body([1, 0], [1, 2]))[0] == 200
    status, answer = ask(client, "GET", "/v2/models/main/versions/9")
    assert status == 404
    assert "version '1'" in answer["error"]


def test_row_ids(client: Any, running: Running) -> None:
    running.seen.ids.clear()
    infer = "/v2/models/main/infer"
    ask(client, "POST", infer, body([1, 0], [1, 2]))
    ask(client, "POST", infer, body([1, 0], [1, 2], id="a"))
    ask(client, "POST", infer, body([1, 0, 1, 0], [2, 2], id="b"))
    ask(client, "POST", infer, body([1, 0, 1, 0], [2, 2], id="c", parameters={"ids": ["x", "y"], "other": 1}))
    assert running.seen.ids == ["a", "b/0", "b/1", "x", "y"]
    status, answer = ask(client, "POST", infer, body([1, 0], [1, 2], parameters={"ids": ["x", "y"]}))
    assert (status, answer["error"]) == (400, "parameters.ids has 2 ids for 1 rows")


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "not an inference request"),
        (b"[]", "not an inference request"),
        (b"{}", "inputs"),
        (b'{"inputs": []}', "no inputs"),
        (body([1, 2], [2, 2]), "shape [2, 2] needs 4 values, data has 2"),
        (body([[1], [2]], [1, 2]), "nested data"),
        (body(["a", "b"], [1, 2]), "must be numbers"),
        (body([1e39, 0], [1, 2]), "out of range for FP32"),
        (body([1, 2, 3], [1, 3]), "features"),
        (body([1, 2], [2]), "features"),
        (body([1, 2], [1, 1, 1, 1, 1, 1, 1, 1, 2]), "dimensions"),
        (b"[" * 5000, "not an inference request"),
        (b'{"inputs": [{"name": "features", "shape": [1, 2], "datatype": "FP32", "data": ' + b"[" * 5000, "not an"),
        (body([1, 2], [1, 2]).replace(b"FP32", b"FP64"), "'features' takes FP32, got 'FP64'"),
        (body([1, 2], [1, 2]).replace(b"features", b"futures"), "there is no input 'futures', there are features"),
        (body([1, 2], [-1, 2]), "shape"),
    ],
)
def test_bad_tensors_are_named_and_the_connection_lives(client: Any, payload: bytes, says: str) -> None:
    status, answer = ask(client, "POST", "/v2/models/main/infer", payload)
    assert status == 400
    assert says in answer["error"]
    assert ask(client, "GET", "/v2/health/live")[0] == 200


def test_fp64_reaches_models_that_take_it(maker: Any) -> None:
    given: list[Array] = []

    class Wide:
        manifest, takes_doubles = open_bundle(maker.make("1").path).manifest, True

        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            given.append(inputs["features"])
            return {"score": np.zeros(len(inputs["features"]), np.float32)}

        def close(self) -> None: ...

    models = Models()
    models.put(Live("wide", "0" * 64, Wide()))
    routes = Routes(models)
    for datatype, dtype in (("FP64", np.float64), ("FP32", np.float32)):
        payload = body([16777217, 1e-300], [1, 2]).replace(b"FP32", datatype.encode())
        request = Request(
            method="POST",
            path="/v2/models/wide/infer",
            headers={},
            body=payload,
            keep_alive=True,
            deadline=time.monotonic() + 5,
        )
        assert routes(request).status == 200
        assert given[-1].dtype == dtype
    assert given[0].tolist() == [[16777217, 1e-300]]


def test_engine_faults_are_500_and_told(client: Any, running: Running) -> None:
    before = running.seen.faults
    status, answer = ask(client, "POST", "/v2/models/main/infer", body([1, -1], [1, 2]))
    assert status == 500
    assert "7" in answer["error"]
    assert running.seen.faults == before + 1
    assert ask(client, "POST", "/v2/models/main/infer", body([1, 0], [1, 2]))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/main/infer", 405),
        ("DELETE", "/v2/health/live", 405),
        ("GET", "/v2/models/main/versions", 404),
        ("GET", "/v2/models/main/a/b/c", 404),
        ("GET", "/v2/models/%6dain", 200),
        ("GET", "/v2/models/main?x=1", 200),
    ],
)
def test_statuses(client: Any, method: str, path: str, status: int) -> None:
    assert ask(client, method, path)[0] == status


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /v2 HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 411),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n", 413),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", 408),
        (b"GET /v2 HT", 408),
    ],
)
def test_malformed_http_is_answered_and_closed(client: Any, running: Running, raw: bytes, status: int) -> None:
    client.send(raw)
    assert client.answer()[0] == status
    assert client.closed()


def test_keep_alive_pipelining_and_http_1_0(client: Any) -> None:
    client.send(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    assert [client.answer()[0] for _ in range(3)] == [200, 200, 200]
    client.send(b"GET /v2 HTTP/1.0\r\n\r\n")
    assert client.answer()[0] == 200
    assert client.closed()


def test_expect_continue(client: Any) -> None:
    payload = body([1, 0], [1, 2])
    head = f"POST /v2/models/main/infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(payload)}"
    client.send(head.encode() + b"\r\n\r\n")
    assert client.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(payload)
    assert client.answer()[0] == 200


def test_connections_beyond_the_limit_are_turned_away(running: Running, connect: Connect) -> None:
    time.sleep(0.1)  # connections of earlier tests end
    clients = [connect(running.address) for _ in range(20)]
    statuses = []
    for one in clients:
        try:
            statuses.append(one.request("GET", "/v2/health/live")[0])
        except ConnectionError:
            statuses.append(503)
    assert 200 in statuses
    assert 503 in statuses


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.binary(max_size=200)
    | st.from_regex(rb"[A-Z]{3} /[a-z0-9/]{0,9} HTTP/1\.[01]\r\n([A-Za-z-]{1,9}: .{0,9}\r\n){0,3}")
)
def test_any_bytes_are_answered_or_refused(raw: bytes) -> None:
    with contextlib.suppress(BadRequest):
        assert parse_head(raw).content_length >= 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(min_size=1, max_size=120))
def test_any_bytes_on_the_wire_leave_the_server_serving(running: Running, raw: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect(str(running.path))
        sock.sendall(raw)
        sock.shutdown(socket.SHUT_WR)
        answer = sock.recv(65536)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["features", "amt", "x"]),
        "shape": json_values | st.lists(st.integers(0, 4), max_size=3) | st.just([0, 10**18]),
        "datatype": st.sampled_from([*DATATYPES, "FP8"]),
        "data": json_values,
    }
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=st.fixed_dictionaries({"inputs": st.lists(tensors, max_size=2)}, optional={"id": json_values}))
def test_any_request_is_answered(running: Running, payload: dict[str, Any]) -> None:
    request = Request(
        method="POST",
        path="/v2/models/main/infer",
        headers={},
        body=msgspec.json.encode(payload),
        keep_alive=True,
        deadline=time.monotonic() + 5,
    )
    assert running.routes(request).status in (200, 400)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_tensors_survive_the_round_trip(data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from(["FP32", "FP64", "INT64", "INT32", "UINT8", "BOOL", "BYTES"]))
    dtype = DATATYPES[datatype]
    shape = tuple(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)))
    count = int(np.prod(shape))
    element: st.SearchStrategy[Any] = {
        "f": st.floats(width=32, allow_infinity=False),
        "i": st.integers(-(2**31), 2**31 - 1),
        "u": st.integers(0, 255),
        "b": st.booleans(),
        "O": st.text(max_size=4),
    }[dtype.kind]
    values = data.draw(st.lists(element, min_size=count, max_size=count))
    array = np.array(values, dtype=dtype).reshape(shape)
    nested = data.draw(st.booleans()) and count > 0
    sent = array.tolist() if nested else array.ravel().tolist()
    raw = msgspec.json.encode(
        {"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": sent}], "id": "a"}
    )
    tensor: InputTensor = decode_request(raw).inputs[0]
    back = decode_tensor(tensor)
    assert back.dtype == dtype
    assert back.shape == shape
    np.testing.assert_array_equal(back, array)
    assert encode_tensor("x", back).shape == shape


def test_a_taken_port_and_a_living_socket_are_refused(running: Running, tmp_path: Path) -> None:
    server = HttpServer(running.routes)
    with pytest.raises(PortInUseError, match="already in use"):
        server.listen_tcp(*running.address)
    with pytest.raises(PortInUseError, match="another process"):
        server.listen_unix(running.path)
    plain = tmp_path / "plain"
    plain.write_text("keep me")
    with pytest.raises(PortInUseError, match="not a socket"):
        server.listen_unix(plain)
    assert plain.read_text() == "keep me"
    with pytest.raises(BadConfigError, match="cannot listen"):
        server.listen_tcp("192.0.2.1", 1)
    server.stop()


def test_a_socket_left_by_a_dead_process_is_replaced(running: Running, tmp_path: Path, connect: Connect) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    server = HttpServer(running.routes)
    server.listen_unix(path)
    server.start()
    assert connect(path).request("GET", "/v2/health/live")[0] == 200
    server.stop()


def test_stop_drains_a_running_request(tmp_path: Path, connect: Connect) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(request: Request) -> Any:
        entered.set()
        assert release.wait(10)
        return Routes(Models())(request)

    server = HttpServer(slow)
    path = server.listen_unix(tmp_path / "s.sock")
    server.start()
    client, idle = connect(path), connect(path)
    client.send(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
    assert entered.wait(10)
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    assert idle.closed()
    release.set()
    assert client.answer() == (503, b'{"ready":false}')
    assert client.closed()
    stopper.join(10)
    assert not stopper.is_alive()


def test_a_failing_handler_is_a_500(tmp_path: Path, connect: Connect) -> None:
    def broken(request: Request) -> Any:
        raise ZeroDivisionError

    server = HttpServer(broken)
    path = server.listen_unix(tmp_path / "s.sock")
    server.start()
    client = connect(path)
    assert client.request("GET", "/v2")[0] == 500
    assert client.request("GET", "/v2")[0] == 500
    server.stop()
