"""Model files whose trees are none: refused before a library that trusts them reads them."""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import pytest
import treelite
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.compiler.frontends import read_model
from outrider.compiler.frontends.ubjson import read_ubjson
from outrider.runtime.errors import BadModelError, OutriderError


@pytest.fixture(scope="module")
def booster(table: Any) -> xgboost.Booster:
    rows, target = table
    return xgboost.train({"max_depth": 3, "nthread": 1}, xgboost.DMatrix(rows, label=target), 2)


@pytest.fixture(scope="module")
def text(table: Any) -> str:
    rows, target = table
    data = lightgbm.Dataset(rows, label=target, categorical_feature=[3])
    made = lightgbm.train({"verbose": -1, "num_leaves": 5, "num_threads": 1}, data, 2)
    found: str = made.model_to_string()
    return found


XGBOOST: dict[str, Callable[[Any], Any]] = {
    "in a circle": lambda tree: tree["left_children"].__setitem__(1, 0),
    "outside": lambda tree: tree["right_children"].__setitem__(0, 999),
    "twice": lambda tree: tree["left_children"].__setitem__(0, tree["right_children"][0]),
    "with one child": lambda tree: tree["right_children"].__setitem__(0, -1),
    "below -1": lambda tree: (tree["left_children"].__setitem__(-1, -7), tree["right_children"].__setitem__(-1, -7)),
    "made out": lambda tree: tree.pop("left_children"),
    "splits on feature 17": lambda tree: tree["split_indices"].__setitem__(0, 17),
    "not finite": lambda tree: tree["split_conditions"].__setitem__(-1, float("nan")),
}


@pytest.mark.parametrize("message", XGBOOST)
def test_an_xgboost_file_whose_trees_are_none(booster, tmp_path, message):
    content = json.loads(bytes(booster.save_raw("json")))
    XGBOOST[message](content["learner"]["gradient_booster"]["model"]["trees"][1])
    path = tmp_path / "model.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BadModelError, match=f"tree.* 1 .*{message}|its trees cannot be {message}"):
        read_model(path)


def test_a_binary_xgboost_file_whose_trees_are_none(booster, tmp_path):
    data = bytearray(booster.save_raw("ubj"))
    start = data.rindex(b"left_children[$l#L") + len(b"left_children[$l#L") + 8
    data[start + 4 : start + 8] = struct.pack(">i", 0)
    path = tmp_path / "model.ubj"
    path.write_bytes(data)
    with pytest.raises(BadModelError, match="tree 1 is not a tree"):
        read_model(path)


LIGHTGBM = {
    "in a circle": ("left_child", "0"),
    "outside": ("left_child", "7"),
    "twice": ("left_child", "-9"),
    "a feature that": ("split_feature", "9"),
    "by categories that": ("decision_type", "1"),
    "the leaves that": ("num_leaves", "6"),
    "different lengths": ("threshold", "0 0"),
    "made out": ("right_child", "one"),
}


@pytest.mark.parametrize("message", LIGHTGBM)
def test_a_lightgbm_file_whose_trees_are_none(text, tmp_path, message):
    name, value = LIGHTGBM[message]
    head, _, tree = text.partition("Tree=1\n")
    changed = re.sub(rf"^{name}=\S+", f"{name}={value}", tree, flags=re.MULTILINE)
    path = tmp_path / "model.txt"
    path.write_text(_with_sizes(head + "Tree=1\n" + changed))
    with pytest.raises(BadModelError, match=f"tree 1 .*{message}|its trees cannot be {message}"):
        read_model(path)


def _with_sizes(text: str) -> str:
    """The text with `tree_sizes` that fit, so that only the change is at fault."""
    first, second, end = (text.index(mark) for mark in ("Tree=0\n", "Tree=1\n", "end of trees\n"))
    return re.sub(r"^tree_sizes=.*", f"tree_sizes={second - first} {end - second}", text, flags=re.MULTILINE)


def test_a_checkpoint_whose_trees_are_none(booster, tmp_path):
    """Children and leaves as they stand in the file, changed one by one: an error of ours, or a model that runs."""
    model = treelite.frontend.from_xgboost(booster)
    data, children = bytes(model.serialize_bytes()), model.get_tree_accessor(1).get_field("cleft").tobytes()
    start = data.rindex(children)
    refused = 0
    for place in range(0, len(children), 4):
        for value in (0, 1, 99, 2**31 - 1):
            changed = data[: start + place] + struct.pack("<i", value) + data[start + place + 4 :]
            path = tmp_path / "model.tl"
            path.write_bytes(changed)
            try:
                read_model(path)
            except OutriderError:
                refused += 1
    assert refused > 0.8 * len(children)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def ubjson(value: Any) -> bytes:
    """A writer of its own, to read back."""
    if value is None or isinstance(value, bool):
        return {None: b"Z", True: b"T", False: b"F"}[value]
    if isinstance(value, int):
        return b"L" + struct.pack(">q", value)
    if isinstance(value, str):
        return b"S" + _key(value)
    if isinstance(value, list):
        return b"[#" + b"l" + struct.pack(">i", len(value)) + b"".join(map(ubjson, value))
    return b"{" + b"".join(_key(key) + ubjson(item) for key, item in value.items()) + b"}"


def _key(text: str) -> bytes:
    data = text.encode()
    return b"L" + struct.pack(">q", len(data)) + data


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=3), json_values, max_size=5), st.data())
def test_ubjson_is_read_back_or_refused(value, data):
    written = ubjson(value)
    assert read_ubjson(written) == value
    with pytest.raises(BadModelError):
        read_ubjson(written[: data.draw(st.integers(0, len(written) - 1))])
    place = data.draw(st.integers(0, len(written) - 1))
    with contextlib.suppress(BadModelError):
        read_ubjson(written[:place] + bytes([data.draw(st.integers(0, 255))]) + written[place + 1 :])


def test_ubjson_arrays_of_one_type():
    typed = b"{" + _key("a") + b"[$d#L" + struct.pack(">q", 2) + struct.pack(">ff", 0.5, -2.0) + b"}"
    assert read_ubjson(typed)["a"].tolist() == [0.5, -2.0]
    deep = b"{" + _key("a") + b"[" * 100 + b"]" * 100 + b"}"
    with pytest.raises(BadModelError, match="nested too deeply"):
        read_ubjson(deep)


def test_a_whole_file_is_read_by_both_forms(booster, tmp_path):
    for suffix in ("json", "ubj"):
        path = Path(tmp_path, f"model.{suffix}")
        booster.save_model(path)
        assert read_model(path).description.startswith("Booster")
