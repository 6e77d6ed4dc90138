"""The publisher and the block server against a channel that only remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from outrider.fleet.db import BundleRow, Database, DeploymentRow, DesiredRow, DeviceRow, ReleaseRow, RolloutRow
from outrider.fleet.manager import publish
from outrider.fleet.manager.blocks import MAX_WAITING_PER_DEVICE, BlockServer
from outrider.fleet.manager.publish import Publisher
from outrider.runtime.errors import UnavailableError
from outrider.runtime.messages import BLOCK_BYTES, Address, Block, BlockRequest, decode
from outrider.runtime.target import Target

HOST = Target(name="host", arch="x86_64", triple="x86_64-linux-gnu")


class Channel:
    """Answers at once, later, or refuses."""

    def __init__(self) -> None:
        self.connected = True
        self.sent: list[tuple[str, bytes, bool]] = []
        self.waiting: list[Any] = []
        self.answer: bool | None = True
        self.fails = False

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None, done: Any = None
    ) -> None:
        if self.fails:
            raise UnavailableError("no connection")
        self.sent.append((topic, payload, retain))
        if self.answer is None:
            self.waiting.append(done)
        elif done is not None:
            done(self.answer)

    def take(self) -> list[tuple[str, bytes, bool]]:
        sent, self.sent = self.sent, []
        return sent


class World:
    """A publisher over a database, with time that moves when told to."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.time = 1000.0
        self.woken = 0
        self.channel = Channel()
        self.publisher = Publisher(self.channel, b"epoch", on_room=self._wake, clock=lambda: self.time)

    def _wake(self) -> None:
        self.woken += 1

    def add(self, name: str, revision: int = 0, flagged: str | None = None) -> None:
        with self.database.session() as session:
            session.merge(
                DeviceRow(
                    id=name,
                    tenant="acme",
                    name=name,
                    group="g",
                    secret_hash=name.rjust(64, "0"),
                    target=msgspec.to_builtins(HOST),
                    created=0.0,
                    online=False,
                    revision_desired=revision,
                    revision_reported=0,
                    flagged=flagged,
                )
            )
            session.flush()
            if revision:
                session.merge(
                    DesiredRow(device=name, rev=revision, envelope=f"document {revision}", doc={}, created=0.0)
                )

    def step(self) -> list[tuple[str, bytes, bool]]:
        with self.database.read() as session:
            self.publisher.step(session)
        return self.channel.take()


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def topic(name: str) -> str:
    return f"or1/acme/{name}/dn/desired"


def test_only_what_changed_is_published_retained(world: World) -> None:
    world.add("a", 1)
    world.add("b")
    assert world.step() == [(topic("a"), b"document 1", True)]
    assert world.step() == []
    world.add("a", 2)
    assert world.step() == [(topic("a"), b"document 2", True)]


def test_a_flagged_device_has_its_document_cleared_and_published_again_later(world: World) -> None:
    world.add("a", 3)
    world.step()
    world.add("a", 3, flagged="duplicate identity")
    assert world.step() == [(topic("a"), b"", True)]
    assert world.step() == []
    world.add("a", 3)
    assert world.step() == [(topic("a"), b"document 3", True)]


def test_a_refused_publish_is_tried_again(world: World) -> None:
    world.add("a", 1)
    world.channel.answer = False
    assert len(world.step()) == 1
    world.channel.answer = True
    assert len(world.step()) == 1
    world.add("a", 2)
    world.channel.fails = True
    assert world.step() == []
    world.channel.fails = False
    assert world.step() == [(topic("a"), b"document 2", True)]
    world.channel.connected = False
    world.add("a", 3)
    assert world.step() == []


def test_a_missing_sentinel_publishes_everything_and_is_then_written(world: World) -> None:
    world.add("a", 1)
    world.publisher.up()
    world.step()
    assert not world.publisher.lost_state()  # it may still come
    world.time += publish.SENTINEL_S + 0.1
    assert world.publisher.lost_state()
    assert not world.publisher.lost_state()
    world.publisher.forget()
    world.channel.answer = None
    assert world.step() == [(topic("a"), b"document 1", True)]
    assert world.step() == []  # not before the broker has everything
    world.channel.waiting.pop()(True)
    assert world.step() == [("or1/_sys/epoch", b"epoch", True)]
    world.channel.waiting.pop()(True)
    assert world.step() == []
    world.time += 100
    assert not world.publisher.lost_state()


def test_the_sentinel_of_this_fleet_means_that_nothing_is_lost(world: World) -> None:
    world.publisher.up()
    world.publisher.epoch_seen(b"epoch")
    world.time += 10
    assert not world.publisher.lost_state()
    world.publisher.up()
    world.publisher.epoch_seen(b"another fleet")
    world.time += 10
    assert world.publisher.lost_state()


def test_after_a_lost_connection_only_what_was_new_is_published_again(world: World) -> None:
    world.add("a", 1)
    world.step()
    world.time += publish.FORGETFUL_S + 1
    world.add("b", 1)
    world.step()
    world.publisher.forget_recent()
    assert world.step() == [(topic("b"), b"document 1", True)]


def test_the_rate_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "OUTSTANDING", 5)
    monkeypatch.setattr(publish, "DOCUMENTS_PER_S", 10)
    world.publisher = Publisher(world.channel, b"epoch", on_room=world._wake, clock=lambda: world.time)
    for number in range(12):
        world.add(f"d{number}", 1)
    assert len(world.step()) == 5
    assert len(world.step()) == 0
    world.time += 0.35
    assert len(world.step()) == 3
    world.time += 10
    assert len(world.step()) == 4
    assert world.woken


# Blocks ---------------------------------------------------------------------------------------------------------

SHA = "b" * 64


@pytest.fixture
def blocks(database: Database, world: World, tmp_path: Path) -> BlockServer:
    world.add("a")
    world.add("stranger")
    (tmp_path / "x.orb").write_bytes(bytes(range(256)) * (BLOCK_BYTES * 5 // 256) + b"end")
    with database.session() as session:
        session.add(ReleaseRow(number=1, name="fraud", version="1", created=0.0))
        session.flush()
        session.add(
            BundleRow(
                sha256=SHA, size=1, name="fraud", version="1", target="host", manifest={}, envelope="", path="x.orb",
                release=1, created=0.0,
            )
        )  # fmt: skip
        session.add(
            RolloutRow(id=1, release=1, group="g", canary=0, state="RUNNING", settings={}, seed="", created=0.0)
        )
        session.flush()
        session.add(
            DeploymentRow(
                rollout=1, device="a", bundle=SHA, wave=1, attempt=1, state="FETCHING", created=0.0, updated=0.0
            )
        )
    return BlockServer(database, tmp_path, world.channel)


def ask(server: BlockServer, device: str, index: int, count: int) -> None:
    address = Address(tenant="acme", device=device)
    server.request(address, BlockRequest(v=1, sha256=SHA, index=index, n=count))


def test_blocks_are_cut_as_asked_and_end_with_the_file(blocks: BlockServer, world: World, wait: Any) -> None:
    ask(blocks, "a", 4, 1_000_000)
    ask(blocks, "a", -1, 1)
    ask(blocks, "a", 0, 0)
    ask(blocks, "stranger", 0, 1)
    blocks.start()
    wait(lambda: len(world.channel.sent) == 2)
    blocks.stop()
    sent = world.channel.take()
    assert {name for name, _, _ in sent} == {f"or1/acme/a/dn/blk/{SHA}"}
    first, last = (decode(payload, Block) for _, payload, _ in sent)
    assert (first.index, len(first.data), last.index, last.data) == (4, BLOCK_BYTES, 5, b"end")


def test_requests_are_bounded_a_device_and_served_in_turns(blocks: BlockServer, world: World, wait: Any) -> None:
    for _ in range(3):  # the same question again takes no more room
        ask(blocks, "a", 0, 2)
    for index in range(1, 3 * MAX_WAITING_PER_DEVICE):
        ask(blocks, "a", 5 if index > 4 else index, 1)
    blocks.start()
    wait(lambda: len(world.channel.sent) >= 7)
    blocks.stop()
    indexes = [decode(payload, Block).index for _, payload, _ in world.channel.sent]
    assert indexes[0] == 0
    assert indexes.index(1) < len(indexes) - 1
    assert len(indexes) == 7


def test_a_broker_that_answers_nothing_holds_back_further_blocks(
    blocks: BlockServer, world: World, wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.channel.answer = None
    for index in range(6):
        for extra in range(5):
            ask(blocks, "a", index, extra + 1)
    ask(blocks, "a", 0, 6)
    ask(blocks, "a", 1, 5)
    ask(blocks, "a", 2, 4)
    blocks.start()
    wait(lambda: len(world.channel.waiting) == 16, what="as many as may be outstanding")
    for done in list(world.channel.waiting):
        done(True)
    wait(lambda: len(world.channel.sent) > 16)
    world.channel.connected = False
    blocks.stop()
