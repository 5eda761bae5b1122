"""`nodeagent explain`: which agents it asks for what, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nodeagent.admin.explain import AccessExplanation

Run = Callable[..., Any]


def explain(run: Run, agent: Any, *arguments: str) -> Any:
    return run("explain", "productpage", "reviews:9080/x", "--agent", str(agent.path), *arguments)


def test_each_agent_is_asked_for_its_part(agent: Any, run: Run) -> None:
    ran = explain(run, agent, "-X", "POST", "-H", "End-User: jason", "-H", "a:b")
    route, access = agent.state.asked
    assert (route.workload, route.host, route.port, route.method, route.path) == (
        "default/productpage",
        "reviews",
        9080,
        "POST",
        "/x",
    )
    assert route.headers == access.headers == (("end-user", "jason"), ("a", "b"))
    assert (access.workload, access.port, access.source) == ("default/productpage", 9080, "10.244.1.2")
    assert (access.destination, access.host) == ("10.244.1.3", "reviews:9080")
    assert access.principal == "spiffe://cluster.local/ns/default/sa/productpage"
    assert ran.code == 1
    assert ran.out.splitlines()[-3:] == [
        "    stage     deny",
        "      policy  p matched",
        "denied, answered 403: why",
    ]


def test_a_host_that_is_named_is_the_authority(agent: Any, run: Run) -> None:
    explain(run, agent, "-H", "Host: other.example", "-H", "a:b")
    route, access = agent.state.asked
    assert route.headers == (("host", "other.example"), ("a", "b"))
    assert (access.host, access.headers) == (
        "reviews:9080",
        (("a", "b"),),
    )  # the authority that the route was for


def test_what_is_allowed(agent: Any, run: Run) -> None:
    agent.state.access = AccessExplanation((), True)
    ran = explain(run, agent)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "allowed")


def test_in_plaintext_nobody_is_known(agent: Any, run: Run) -> None:
    (target,) = agent.state.route.targets
    agent.state.route = replace(agent.state.route, targets=(replace(target, identities=()),))
    explain(run, agent)
    assert agent.state.asked[1].principal == ""


def test_a_connection(agent: Any, run: Run) -> None:
    ran = explain(run, agent, "--tcp")
    assert [asked.method for asked in agent.state.asked] == [None, None]
    assert ran.out.splitlines()[-1] == "denied, reset: why"


def test_what_goes_nowhere(agent: Any, run: Run) -> None:
    agent.state.route = replace(agent.state.route, error="no route", targets=())
    ran = explain(run, agent)
    assert (ran.code, ran.out.splitlines()[-1]) == (1, "goes nowhere: no route")
    assert len(agent.state.asked) == 1


def test_nobody_serves_the_destination(agent: Any, run: Run) -> None:
    (target,) = agent.state.route.targets
    agent.state.route = replace(agent.state.route, targets=(replace(target, workload="data/db"),))
    ran = explain(run, agent)
    assert ran.code == 0
    assert "whether data/db lets it in cannot be told" in ran.out


def test_as_json(agent: Any, run: Run) -> None:
    answer = json.loads(explain(run, agent, "-o", "json").out)
    assert answer["route"]["lines"] == [{"step": "service", "text": "default/reviews"}]
    assert answer["access"]["detail"] == "why"


def test_the_agents_of_a_lab(agent: Any, run: Run) -> None:
    assert "there are several labs: books, other; choose one by --name LAB" in run("explain", "a", "b").error
    assert "no lab 'none'" in run("explain", "a", "b", "--name", "none").error


def test_a_pod_that_no_agent_serves(agent: Any, run: Run) -> None:
    ran = run("explain", "nobody", "reviews", "--agent", str(agent.path))
    assert ran.error.startswith("no agent serves default/nobody; asked: agent at ")


@pytest.mark.parametrize("to", ["https://reviews/", "reviews:x", "/path", "reviews:70000"])
def test_a_destination_that_is_none(agent: Any, run: Run, to: str) -> None:
    assert run("explain", "productpage", to, "--agent", str(agent.path)).code == 2
