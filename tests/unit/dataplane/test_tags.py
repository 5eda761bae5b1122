from __future__ import annotations

from nodeagent.dataplane.tags import TagTable


def test_numbers_are_stable_and_values_follow() -> None:
    table: TagTable[str] = TagTable()
    first, fresh = table.assign("a", "one")
    assert (first, fresh) == (1, True)
    assert table.assign("a", "two") == (1, False)
    assert table.resolve(1) == "two"
    assert table.assign("b", "other") == (2, True)
    assert table.resolve(0) is None


def test_a_number_is_never_given_out_twice() -> None:
    table: TagTable[str] = TagTable()
    table.assign("a", "one")
    table.release("a")
    assert table.assign("a", "again") == (2, True)
    assert table.resolve(1) == "one", "long connections still report it"


def test_what_is_released_is_forgotten_at_the_limit() -> None:
    table: TagTable[int] = TagTable(retired_limit=2)
    for number in range(4):
        table.assign(number, number)
    for number in range(4):
        table.release(number)
    assert [table.resolve(tag) for tag in (1, 2, 3, 4)] == [None, None, 2, 3]
    assert len(table) == 0


def test_children_go_with_their_parent() -> None:
    table: TagTable[str] = TagTable()
    table.assign("cluster", "c")
    table.assign("endpoint 1", "e1", "cluster")
    table.assign("endpoint 2", "e2", "cluster")
    table.assign("other", "o")
    assert table.children("cluster") == {"endpoint 1", "endpoint 2"}
    table.release("endpoint 1")
    assert table.children("cluster") == {"endpoint 2"}
    table.release("cluster")
    assert len(table) == 1
    assert table.children("cluster") == frozenset()


def test_a_parent_needs_no_number() -> None:
    table: TagTable[str] = TagTable()
    table.assign("port", "p", "workload")
    table.release("workload")
    assert len(table) == 0
    table.release("workload")
