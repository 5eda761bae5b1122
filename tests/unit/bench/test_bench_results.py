"""Ratios of the same round, what is added to the direct way, and what does not count."""

from __future__ import annotations

import json

from nodeagent.bench.results import CaseResult, Compare, Metric, Results, Sample, rotated

CPU = Metric("cpu", "CPU", "us")
P99 = Metric("p99", "added p99", "us", Compare.ADDED)


def sample(peer: str, number: int, value: float, *, dropped: bool = False, key: str = "cpu") -> Sample:
    return Sample(peer, number, {key: value}, dropped=dropped)


def test_ratio_pairs_the_same_round() -> None:
    """Both drift by the same factor: the ratio of medians would be as good, that of unlike rounds not."""
    result = CaseResult("s", "c", (CPU,))
    for number, drift in enumerate((1.0, 2.0, 4.0)):
        result.samples += [sample("nodeagent", number, 10 * drift), sample("envoy", number, 20 * drift)]
    result.samples.append(sample("nodeagent", 3, 1000.0))  # envoy has no round 3
    ratio = result.ratio(CPU, "envoy")
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high, ratio.count) == (0.5, 0.5, 0.5, 3)


def test_dropped_samples_count_nowhere() -> None:
    result = CaseResult("s", "c", (CPU,))
    result.samples = [
        sample("nodeagent", 0, 10.0),
        sample("envoy", 0, 10.0),
        sample("nodeagent", 1, 10.0),
        sample("envoy", 1, 1.0, dropped=True),
    ]
    ratio = result.ratio(CPU, "envoy")
    assert ratio is not None
    assert (ratio.median, ratio.count) == (1.0, 1)
    assert result.dropped() == 1
    assert result.values(CPU, "envoy") == [10.0]


def test_added_is_over_direct_in_the_same_round() -> None:
    result = CaseResult("s", "c", (P99,))
    for number, base in enumerate((100.0, 500.0)):
        for peer, extra in (("direct", 0.0), ("nodeagent", 50.0), ("haproxy", 100.0)):
            result.samples.append(sample(peer, number, base + extra, key="p99"))
    level, ratio = result.level(P99, "nodeagent"), result.ratio(P99, "haproxy")
    assert level is not None
    assert ratio is not None
    assert level.median == 50.0
    assert ratio.median == 0.5
    direct = result.level(P99, "direct")
    assert direct is not None
    assert direct.median == 300.0


def test_nothing_is_compared_with_itself_or_with_no_proxy() -> None:
    result = CaseResult("s", "c", (CPU,), [sample("nodeagent", 0, 1.0), sample("direct", 0, 1.0)])
    assert result.ratio(CPU, "nodeagent") is None
    assert result.ratio(CPU, "direct") is None


def test_a_peer_that_adds_nothing_gives_no_ratio() -> None:
    """Not infinity, nor a negative one."""
    result = CaseResult("s", "c", (P99,))
    result.samples = [
        sample("direct", 0, 100.0, key="p99"),
        sample("nodeagent", 0, 120.0, key="p99"),
        sample("nginx", 0, 99.0, key="p99"),
    ]
    assert result.ratio(P99, "nginx") is None


def test_the_subject_comes_first() -> None:
    result = CaseResult("s", "c", (CPU,), [sample("envoy", 0, 1.0), sample("nodeagent", 0, 1.0)])
    assert result.peers() == ["nodeagent", "envoy"]


def test_json_holds_samples_and_estimates() -> None:
    results = Results({"cores": "2"}, {"rounds": 1}, "nodeagent bench", "2026-01-01T00:00:00+00:00")
    results.cases.append(CaseResult("s", "c", (CPU,), [sample("nodeagent", 0, 1.5)]))
    document = json.loads(json.dumps(results.as_json()))
    case = document["cases"][0]
    assert case["samples"][0]["values"] == {"cpu": 1.5}
    assert case["estimates"][0]["level"]["median"] == 1.5
    assert case["metrics"][0]["compare"] == "ratio"


def test_rotation_gives_everyone_the_first_place() -> None:
    peers = ["a", "b", "c"]
    assert [rotated(peers, number)[0] for number in range(6)] == ["a", "b", "c", "a", "b", "c"]
    assert rotated([], 3) == []
