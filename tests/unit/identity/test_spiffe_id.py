"""SPIFFE IDs: one spelling, no other."""

from __future__ import annotations

import pytest

from nodeagent.model.identity import Identity, check_trust_domain


def test_both_ways() -> None:
    text = "spiffe://cluster.local/ns/default/sa/web.v1"
    identity = Identity.parse(text)
    assert identity == Identity("cluster.local", "default", "web.v1")
    assert str(identity) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "SPIFFE://cluster.local/ns/a/sa/b",
        "http://cluster.local/ns/a/sa/b",
        "spiffe:///ns/a/sa/b",
        "spiffe://Cluster.local/ns/a/sa/b",
        "spiffe://cluster.local:443/ns/a/sa/b",
        "spiffe://user@cluster.local/ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/b/",
        "spiffe://cluster.local/ns/a/sa/",
        "spiffe://cluster.local/ns//sa/b",
        "spiffe://cluster.local//ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/b/extra",
        "spiffe://cluster.local/sa/a/ns/b",
        "spiffe://cluster.local/ns/a%2fb/sa/c",
        "spiffe://cluster.local/ns/a/sa/b?x=y",
        "spiffe://cluster.local/ns/a/sa/b#x",
        "spiffe://cluster.local/ns/../sa/b",
        "spiffe://cluster.local/ns/a/sa/.",
        "spiffe://cluster.local/ns/a/sa/b\0",
        "spiffe://cluster.local/ns/a/sa/b\n",
        "spiffe://cluster.local/ns/a/sa/b ",
        "spiffe://cluster.local/ns/а/sa/b",  # cyrillic
        "spiffe://cluster.local/ns/a/sa/" + "b" * 3000,
    ],
)
def test_none(text: str) -> None:
    with pytest.raises(ValueError):
        Identity.parse(text)


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "a/b", "a" * 256, "td\n"])
def test_no_trust_domain(name: str) -> None:
    with pytest.raises(ValueError, match="trust domain"):
        check_trust_domain(name)
