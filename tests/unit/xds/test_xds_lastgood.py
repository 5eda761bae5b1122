"""The last good configuration on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.xds.lastgood import Held, LastGood
from nodeagent.xds.store import Resource
from nodeagent.xds.types import CLUSTER, LISTENER

HELD = {
    CLUSTER: Held({"outbound|80||a": Resource("v1", b"\x00\xffbody"), "b": Resource("", b"")}, {"gone"}),
    LISTENER: Held({}, {"10.0.0.1_80", "0.0.0.0_80"}),
}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = LastGood(tmp_path / "state")
    store.save("default/reviews {app=reviews}", HELD)
    assert LastGood(tmp_path / "state").load("default/reviews {app=reviews}") == HELD
    assert len(list((tmp_path / "state").iterdir())) == 1


def test_nothing_saved_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert LastGood(tmp_path / "none").load("x") == {}
    assert not caplog.records


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: data[:-1], "checksum"),
        (lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:], "checksum"),
        (lambda data: b"", "another format"),
        (lambda data: data.replace(b"last-good 1", b"last-good 9"), "another format"),
    ],
)
def test_a_damaged_file_is_reported_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object, why: str
) -> None:
    store = LastGood(tmp_path)
    store.save("x", HELD)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert store.load("x") == {}
    assert why in caplog.text
    assert str(path) in caplog.text


def test_a_file_of_another_stream_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = LastGood(tmp_path)
    store.save("x", HELD)
    (path,) = tmp_path.iterdir()
    path.rename(store._path("y"))
    assert store.load("y") == {}
    assert "another stream" in caplog.text


def test_too_much_keeps_the_old_file(tmp_path: Path) -> None:
    store = LastGood(tmp_path, limit=200)
    store.save("x", {CLUSTER: Held({"a": Resource("1", b"a")})})
    with pytest.raises(ValueError, match="over the limit of 200"):
        store.save("x", {CLUSTER: Held({"a": Resource("2", b"a" * 300)})})
    assert store.load("x")[CLUSTER].resources["a"].version == "1"


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    store = LastGood(tmp_path / "file")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"exists|directory"):
        store.save("x", HELD)


def test_streams_that_are_gone_leave_no_file(tmp_path: Path) -> None:
    store = LastGood(tmp_path)
    for name in ("a", "b", "c"):
        store.save(name, HELD)
    (tmp_path / "x.1.partial").write_text("left by a crash")
    store.forget("a")
    store.keep_only({"b"})
    assert [path.name for path in tmp_path.iterdir()] == [store._path("b").name]
