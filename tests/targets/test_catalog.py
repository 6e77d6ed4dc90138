"""The board catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.runtime.errors import BadConfigError, NotFoundError
from outrider.runtime.probe import host_target
from outrider.runtime.target import Requirements, Target, refuse
from outrider.targets import board_of, boards, catalog, get_target, target_names


def test_names() -> None:
    assert target_names() == ("host", "aarch64", "armv7", "riscv64", "wasm32-wasi", "x86-64")
    assert get_target("host") == host_target()
    with pytest.raises(NotFoundError, match="one of host, aarch64"):
        get_target("vax")


@pytest.mark.parametrize("name", boards())
def test_every_board_is_a_target(name: str) -> None:
    board, target = boards()[name], get_target(name)
    assert target.name == name
    assert board.description
    assert refuse(Requirements(arch=target.arch, features=target.features, libc=target.libc), target) is None
    assert board_of(target) == board
    assert board.toolchain.target.startswith(target.triple)


def test_a_target_that_is_no_board_has_that_of_its_architecture() -> None:
    assert board_of(get_target("host")).arch == host_target().arch
    assert board_of(Target(name="browser", arch="wasm32", triple="wasm32")).name == "wasm32-wasi"
    with pytest.raises(NotFoundError, match="vax"):
        board_of(Target(name="vax", arch="vax", triple="vax-linux-gnu"))  # type: ignore[arg-type]


def test_a_board_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "BOARDS", tmp_path)
    read = catalog.boards.__wrapped__
    assert read() == {}
    text = (Path(catalog.__file__).with_name("boards") / "aarch64.toml").read_text()
    (tmp_path / "jetson.toml").write_text(text.replace('name = "aarch64"', 'name = "jetson"'))
    assert list(read()) == ["jetson"]
    (tmp_path / "jetson.toml").write_text(text)
    with pytest.raises(BadConfigError, match="calls itself 'aarch64'"):
        read()
    for wrong in ("colour = 'red'\n" + text, "name = [", "name = 'jetson'"):
        (tmp_path / "jetson.toml").write_text(wrong)
        with pytest.raises(BadConfigError, match=r"jetson\.toml"):
            read()
