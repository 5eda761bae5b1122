"""Settings and the command line of the agent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import xds_resources as xds

from nodeagent.app.agent_views import Subject, node_of, view_name
from nodeagent.compiler.workloads import WorkloadIndex, apply_addresses
from nodeagent.config.agent import AgentConfig
from nodeagent.errors import ConfigError
from nodeagent.snapshot.address import parse_address


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"node": ""}, "--node: the name of this node is needed"),
        ({"log_level": "loud"}, "--log-level loud: not one of debug, info, warning, error"),
        ({"xds_mode": "some"}, "--xds-mode some: not one of auto, on-demand, wildcard"),
        ({"dns_capture": "maybe"}, "--dns-capture maybe: not one of on, off"),
        ({"token_cache": 0}, "--token-cache 0: must be at least 1"),
        ({"callout_calls": 1 << 21}, "--callout-calls 2.09715e+06: must be at most 1.04858e+06"),
        ({"access_log": "yes"}, "--access-log yes: not one of off, text, json"),
        ({"zds": Path("none")}, "--zds none: without --workloads there would be no workloads"),
        ({"workers": 0}, "--workers 0: must be at least 1"),
        ({"workers": 65}, "--workers 65: must be at most 64"),
        ({"drain": -1}, "--drain -1: must be at least 0"),
        ({"bypass_services": 1}, "--bypass-services 1: must be at least 16"),
        ({"bypass_connections": 1 << 23}, "--bypass-connections 8.38861e"),
        ({"on_demand_limit": 1}, "--on-demand-limit 1: must be at least 16"),
    ],
)
def test_bad_settings_name_the_option_and_the_mend(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        AgentConfig(**{"node": "a", **fields})  # type: ignore[arg-type]
    assert message in str(error.value)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nodeagent.cli.main", "run", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environment},
        check=False,
    )


def test_a_node_name_is_needed() -> None:
    result = run()
    assert result.returncode == 2
    assert "--node" in result.stderr


def test_an_error_is_one_line(tmp_path: Path) -> None:
    result = run("--node", "a", "--xds-mode", "sometimes")
    assert (result.returncode, result.stderr) == (
        1,
        "nodeagent: --xds-mode sometimes: not one of auto, on-demand, wildcard\n",
    )


def test_the_environment_sets_options() -> None:
    result = run(NODEAGENT_NODE="a", NODEAGENT_ACCESS_LOG="perhaps")
    assert "--access-log perhaps" in result.stderr


def test_help_lists_the_options() -> None:
    result = run("--help", COLUMNS="200", TERM="dumb")
    assert result.returncode == 0
    for option in ("--xds-mode", "--on-demand-ttl", "--state", "--drain"):
        assert option in result.stdout


class TestViews:
    def _subject(self, name: str, labels: dict[str, str] | None, account: str = "default") -> Subject:
        index = WorkloadIndex("node-a")
        pod = xds.workload(name, "10.244.0.5", labels=labels)
        apply_addresses(index, [(pod.workload.uid, pod)], ())
        address = (parse_address("10.244.0.5"), parse_address("fd00::5"))
        return Subject(name, "default", account, address, index.workload_named("default", name))

    def test_pods_that_cannot_be_told_apart_share_one(self) -> None:
        first, second = (self._subject(name, {"app": "a"}) for name in ("a-1", "a-2"))
        assert view_name(first) == view_name(second)
        assert view_name(first).startswith("default/default/a-")

    def test_labels_and_accounts_tell_them_apart(self) -> None:
        names = {
            view_name(self._subject("a-1", {"app": "a"})),
            view_name(self._subject("a-1", {"app": "b"})),
            view_name(self._subject("a-1", {"app": "a"}, "other")),
            view_name(self._subject("a-1", None)),
            view_name(Subject("a-1", "default", "default", ())),
        }
        assert len(names) == 5

    def test_a_name_fits_the_engine_s_event(self) -> None:
        long = "x" * 253
        assert len(view_name(Subject(long, long, long, ()))) <= 200

    def test_the_node_is_a_sidecar_s(self) -> None:
        config = AgentConfig(node="node-a", cluster_id="east", domain="mesh.local")
        node = node_of(self._subject("a-1", {"app": "a"}, "acct"), config)
        assert node.id == "sidecar~10.244.0.5~a-1.default~default.svc.mesh.local"
        assert node.cluster == "a.default"
        assert dict(node.metadata) == {
            "NAME": "a-1",
            "NAMESPACE": "default",
            "SERVICE_ACCOUNT": "acct",
            "NODE_NAME": "node-a",
            "CLUSTER_ID": "east",
            "INSTANCE_IPS": "10.244.0.5,fd00::5",
            "LABELS": {"app": "a"},
        }
