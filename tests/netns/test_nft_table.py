"""The owner of the nftables table in a namespace of the test's own."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from nodeagent.dataplane.netns import scratch_namespace
from nodeagent.dataplane.nft import read_rules, remove_ruleset

pytestmark = pytest.mark.netns


@pytest.fixture
def collectors() -> Iterator[set[threading.Thread]]:
    """Which threads collect garbage, which all do as soon as they can."""
    seen: set[threading.Thread] = set()

    def note(phase: str, _: dict[str, int]) -> None:
        seen.add(threading.current_thread())

    before = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1)
    yield seen
    gc.set_threshold(*before)
    gc.callbacks.remove(note)


def test_no_garbage_is_collected_without_the_processs_descriptors(collectors: set[threading.Thread]) -> None:
    with scratch_namespace() as namespace:
        collectors.clear()
        remove_ruleset(namespace)
        assert read_rules(namespace) is None
    assert collectors <= {threading.current_thread()}
    assert gc.isenabled()
