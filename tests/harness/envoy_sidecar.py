"""Real Envoy as the sidecar of a test's pod, under a real control plane."""

from __future__ import annotations

import json
from pathlib import Path

from harness.envoy_process import start_envoy
from harness.netns import Namespace
from harness.processes import Process


def bootstrap(pod: str, socket: Path, address: str, api_type: str) -> str:
    """Envoy's bootstrap as a sidecar of a pod of the namespace default."""
    return json.dumps(
        {
            "node": {
                "id": f"sidecar~{address}~{pod}.default~default.svc.cluster.local",
                "cluster": f"{pod}.default",
                "metadata": {
                    "NAME": pod,
                    "NAMESPACE": "default",
                    "INSTANCE_IPS": address,
                    "CLUSTER_ID": "Kubernetes",
                },
            },
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 15000}}},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": api_type,
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
                },
                "lds_config": {"ads": {}, "resource_api_version": "V3"},
                "cds_config": {"ads": {}, "resource_api_version": "V3"},
            },
            "static_resources": {
                "clusters": [
                    {
                        "name": "xds",
                        "connect_timeout": "5s",
                        "load_assignment": {
                            "cluster_name": "xds",
                            "endpoints": [
                                {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(socket)}}}}]}
                            ],
                        },
                        "typed_extension_protocol_options": {
                            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                                "explicit_http_config": {"http2_protocol_options": {}},
                            }
                        },
                    }
                ]
            },
        }
    )


def start_sidecar(
    namespace: Namespace, pod: str, socket: Path, folder: Path, api_type: str = "DELTA_GRPC"
) -> Process:
    """Start Envoy in the namespace of a pod; returns when it listens."""
    config = bootstrap(pod, socket, namespace.v4, api_type)
    return start_envoy(namespace, config, folder / f"{pod}-bootstrap.json", 15001)
