"""Blocks, their bitmap, and the two sources: cuts, lies, silence and resumption."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.runtime.errors import DigestMismatchError, StorageError, UnavailableError
from outrider.runtime.fetch import BlockFile, HttpSource, MqttSource, fetch_bundle
from outrider.runtime.fetch.blocks import FLUSH_BLOCKS
from outrider.runtime.messages import BLOCK_BYTES, Block, BlockRequest, SlotDesired

DATA = np.random.default_rng(7).bytes(20 * BLOCK_BYTES + 1234)
COUNT = 21


def _never() -> bool:
    return False


def _wanted(urls: tuple[str, ...] = (), data: bytes = DATA) -> SlotDesired:
    return SlotDesired(
        bundle=hashlib.sha256(data).hexdigest(),
        size=len(data),
        name="m",
        version="1",
        release=1,
        target="host",
        signature="",
        artifacts=(),
        urls=urls,
    )


def _block(index: int, data: bytes = DATA) -> bytes:
    return data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[BlockFile]:
    with BlockFile(tmp_path / "x.part", tmp_path / "x.map", len(DATA)) as blocks:
        yield blocks


class TestBlockFile:
    def test_space_is_taken_first(self, blocks: BlockFile, tmp_path: Path) -> None:
        assert (tmp_path / "x.part").stat().st_blocks * 512 >= len(DATA)
        assert (blocks.count, blocks.complete, blocks.missing()) == (COUNT, False, list(range(COUNT)))

    def test_what_was_flushed_is_there_after_a_restart(self, tmp_path: Path) -> None:
        place = (tmp_path / "x.part", tmp_path / "x.map", len(DATA))
        with BlockFile(*place) as blocks:
            for index in range(FLUSH_BLOCKS + 3):
                blocks.write(index, _block(index))
        with BlockFile(*place) as blocks:
            assert blocks.missing() == list(range(FLUSH_BLOCKS, COUNT))
            for index in blocks.missing():
                blocks.write(index, _block(index))
            assert blocks.sha256() == _wanted().bundle
        with BlockFile(*place) as blocks:
            assert blocks.complete

    def test_another_size_begins_anew(self, tmp_path: Path) -> None:
        with BlockFile(tmp_path / "x.part", tmp_path / "x.map", len(DATA)) as blocks:
            blocks.write(0, _block(0))
            blocks.flush()
        with BlockFile(tmp_path / "x.part", tmp_path / "x.map", len(DATA) - 1) as blocks:
            assert len(blocks.missing()) == COUNT

    @pytest.mark.parametrize("lost", ["x.part", "x.map"])
    def test_half_of_the_pair_begins_anew(self, tmp_path: Path, lost: str) -> None:
        with BlockFile(tmp_path / "x.part", tmp_path / "x.map", len(DATA)) as blocks:
            blocks.write(0, _block(0))
            blocks.flush()
        (tmp_path / lost).unlink()
        with BlockFile(tmp_path / "x.part", tmp_path / "x.map", len(DATA)) as blocks:
            assert len(blocks.missing()) == COUNT

    def test_a_block_of_the_wrong_length_is_refused(self, blocks: BlockFile) -> None:
        with pytest.raises(StorageError, match="not 131072"):
            blocks.write(0, b"short")

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(order=st.permutations(range(COUNT)), cut=st.integers(0, COUNT))
    def test_any_order_and_any_cut(self, order: list[int], cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("blocks")
        with BlockFile(folder / "p", folder / "m", len(DATA)) as blocks:
            for index in order[:cut]:
                blocks.write(index, _block(index))
        with BlockFile(folder / "p", folder / "m", len(DATA)) as blocks:
            assert len(blocks.missing()) <= COUNT - cut + FLUSH_BLOCKS - 1
            assert [i for first, n in blocks.gaps() for i in range(first, first + n)] == blocks.missing()
            for index in order:
                blocks.write(index, _block(index))
            assert blocks.sha256() == _wanted().bundle


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        server = self.server
        server.seen.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        match = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(match[1]), int(match[2]) + 1) if match else (0, len(DATA))
        if server.status:
            self.send_error(server.status)
            return
        if server.whole:
            start, end = 0, len(DATA)
            self.send_response(200)
        else:
            self.send_response(206)
            shift = server.shift
            self.send_header("Content-Range", f"bytes {start + shift}-{end - 1 + shift}/{len(DATA)}")
        body = DATA[start:end]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cut is not None and len(body) > server.cut:
            self.wfile.write(body[: server.cut])
            self.close_connection = True
            return
        self.wfile.write(body)


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that leaves early is no error here."""


@pytest.fixture
def server() -> Iterator[Any]:
    server: Any = _Server(("127.0.0.1", 0), _Handler)
    server.seen, server.cut, server.status, server.whole, server.shift = [], None, None, False, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class TestHttp:
    def test_one_request_fetches_all(self, server: Any, blocks: BlockFile) -> None:
        assert fetch_bundle([HttpSource("secret")], _wanted((f"{server.url}/x?y=1",)), blocks, _never)
        assert server.seen == [("/x?y=1", f"bytes=0-{len(DATA) - 1}", "Bearer secret")]

    def test_only_what_is_missing_is_asked_for(self, server: Any, blocks: BlockFile) -> None:
        for index in (0, 1, 5, COUNT - 1):
            blocks.write(index, _block(index))
        assert fetch_bundle([HttpSource()], _wanted((f"{server.url}/x",)), blocks, _never)
        ranges = [seen[1] for seen in server.seen]
        assert ranges == [
            f"bytes={2 * BLOCK_BYTES}-{5 * BLOCK_BYTES - 1}",
            f"bytes={6 * BLOCK_BYTES}-{20 * BLOCK_BYTES - 1}",
        ]

    def test_cuts_cost_only_the_block_in_flight(self, server: Any, blocks: BlockFile) -> None:
        server.cut = 3 * BLOCK_BYTES + 1000
        assert fetch_bundle([HttpSource()], _wanted((f"{server.url}/x",)), blocks, _never)
        starts = [int(seen[1].split("=")[1].split("-")[0]) // BLOCK_BYTES for seen in server.seen]
        assert starts == [0, 3, 6, 9, 12, 15, 18]

    def test_a_server_without_ranges(self, server: Any, blocks: BlockFile) -> None:
        server.whole = True
        blocks.write(3, _block(3))
        assert fetch_bundle([HttpSource()], _wanted((f"{server.url}/x",)), blocks, _never)

    def test_a_wrong_range_is_not_taken(self, server: Any, blocks: BlockFile) -> None:
        server.shift = 1
        with pytest.raises(UnavailableError, match="another range"):
            fetch_bundle([HttpSource()], _wanted((f"{server.url}/x",)), blocks, _never)

    @pytest.mark.parametrize("status", [401, 404, 500, 302])
    def test_refusals_are_told(self, server: Any, blocks: BlockFile, status: int) -> None:
        server.status = status
        with pytest.raises(UnavailableError, match=str(status)):
            fetch_bundle([HttpSource()], _wanted((f"{server.url}/x",)), blocks, _never)
        assert len(server.seen) == 1

    def test_the_next_url_is_tried(self, server: Any, blocks: BlockFile, free_port: int) -> None:
        urls = (f"http://127.0.0.1:{free_port}/x", "ftp://nowhere/x", f"{server.url}/x")
        assert fetch_bundle([HttpSource()], _wanted(urls), blocks, _never)

    def test_the_token_goes_to_the_fleet_alone(self, server: Any, blocks: BlockFile) -> None:
        source = HttpSource("secret", origin="http://fleet.example:1")
        assert fetch_bundle([source], _wanted((f"{server.url}/x",)), blocks, _never)
        assert server.seen[0][2] is None

    def test_a_path_is_one_of_the_fleet(self, server: Any, blocks: BlockFile) -> None:
        source = HttpSource("secret", origin=server.url)
        assert fetch_bundle([source], _wanted(("/v1/x",)), blocks, _never)
        assert server.seen[0][0::2] == ("/v1/x", "Bearer secret")

    def test_stop_ends_it(self, server: Any, blocks: BlockFile) -> None:
        assert not fetch_bundle(
            [HttpSource()], _wanted((f"{server.url}/x",)), blocks, lambda: len(blocks.missing()) < 9
        )
        assert len(blocks.missing()) == 8

    def test_no_url(self, blocks: BlockFile) -> None:
        with pytest.raises(UnavailableError, match="no URL"):
            fetch_bundle([HttpSource()], _wanted(), blocks, _never)


class _Broker:
    """Answers block requests from a thread of its own, as unfaithfully as it is told to."""

    def __init__(self, answer: Callable[[int, int], list[bytes]]) -> None:
        self.answer = answer
        self.asked: list[int] = []
        self.source: MqttSource
        self.threads: list[threading.Thread] = []

    def request(self, request: BlockRequest) -> None:
        def serve() -> None:
            for index in range(request.index, request.index + request.n):
                for data in self.answer(index, self.asked.count(index)):
                    self.source.deliver(request.sha256, Block(v=1, index=index, data=data))

        self.asked.extend(range(request.index, request.index + request.n))
        self.threads.append(threading.Thread(target=serve))
        self.threads[-1].start()


@pytest.fixture
def broker() -> Iterator[Callable[..., _Broker]]:
    made: list[_Broker] = []

    def make(answer: Callable[[int, int], list[bytes]], **options: Any) -> _Broker:
        broker = _Broker(answer)
        broker.source = MqttSource(broker, **{"block_timeout_s": 0.3, "silence_s": 2.0, **options})
        made.append(broker)
        return broker

    yield make
    for one in made:
        for thread in one.threads:
            thread.join()


class TestMqtt:
    def test_every_block_is_asked_for_once(self, broker: Callable[..., _Broker], blocks: BlockFile) -> None:
        channel = broker(lambda index, _: [_block(index)], block_timeout_s=30.0)
        assert fetch_bundle([channel.source], _wanted(), blocks, _never)
        assert sorted(channel.asked) == list(range(COUNT))

    def test_lost_duplicated_and_broken_blocks(self, broker: Callable[..., _Broker], blocks: BlockFile) -> None:
        def answer(index: int, times: int) -> list[bytes]:
            if index % 3 == 0 and times == 1:
                return []
            return [b"too short", _block(index), _block(index)]

        assert fetch_bundle([broker(answer).source], _wanted(), blocks, _never)

    def test_blocks_that_nobody_asked_for_are_dropped(self, blocks: BlockFile) -> None:
        source = MqttSource(_Broker(lambda *_: []))
        source.deliver("f" * 64, Block(v=1, index=0, data=b"x"))
        assert blocks.missing()

    def test_no_more_than_the_window_is_on_the_way(self, broker: Callable[..., _Broker], blocks: BlockFile) -> None:
        channel = broker(lambda *_: [], silence_s=0.2, block_timeout_s=30.0)
        with pytest.raises(UnavailableError):
            channel.source.fetch(_wanted(), blocks, _never)
        assert channel.asked == list(range(8))

    def test_silence_is_an_absence(self, broker: Callable[..., _Broker], blocks: BlockFile) -> None:
        with pytest.raises(UnavailableError, match="no block arrived"):
            fetch_bundle([broker(lambda *_: [], silence_s=0.3).source], _wanted(), blocks, _never)

    def test_stop_ends_it(self, broker: Callable[..., _Broker], blocks: BlockFile) -> None:
        end = time.monotonic() + 0.2
        assert not fetch_bundle([broker(lambda *_: []).source], _wanted(), blocks, lambda: time.monotonic() > end)

    def test_a_closed_channel(self, blocks: BlockFile) -> None:
        class Closed:
            def request(self, request: BlockRequest) -> None:
                raise UnavailableError("there is no connection")

        with pytest.raises(UnavailableError, match="mqtt: there is no connection"):
            fetch_bundle([MqttSource(Closed())], _wanted(), blocks, _never)


def test_the_second_source_finishes_what_the_first_began(
    server: Any, broker: Callable[..., _Broker], blocks: BlockFile
) -> None:
    channel = broker(lambda index, _: [_block(index)] if index < 6 else [], silence_s=0.4)
    assert fetch_bundle([channel.source, HttpSource()], _wanted((f"{server.url}/x",)), blocks, _never)
    assert server.seen[0][1] == f"bytes={6 * BLOCK_BYTES}-{len(DATA) - 1}"


def test_a_wrong_digest_deletes_the_file(broker: Callable[..., _Broker], blocks: BlockFile, tmp_path: Path) -> None:
    other = bytes(len(DATA))
    channel = broker(lambda index, _: [_block(index, other)])
    with pytest.raises(DigestMismatchError):
        fetch_bundle([channel.source], _wanted(), blocks, _never)
    assert not (tmp_path / "x.part").exists()
    assert not (tmp_path / "x.map").exists()


def test_without_a_source(blocks: BlockFile) -> None:
    with pytest.raises(UnavailableError, match="no source"):
        fetch_bundle([], _wanted(), blocks, _never)
