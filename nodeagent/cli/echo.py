"""`nodeagent echo`: the test workload."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nodeagent.errors import CapabilityError, ConfigError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _port(text: str) -> Any:
    return typer.Option(
        metavar="PORT", min=0, max=65535, help=f"{text}. May be repeated; 0 picks a free one."
    )


@app.command()
def echo(
    http: Annotated[list[int] | None, _port("HTTP/1.1, with upgrade to WebSocket")] = None,
    h2c: Annotated[list[int] | None, _port("HTTP/2 in clear text, by prior knowledge or upgrade")] = None,
    grpc: Annotated[list[int] | None, _port("gRPC: nodeagent.echo.Echo and grpc.health.v1")] = None,
    ws: Annotated[list[int] | None, _port("WebSocket only")] = None,
    tcp: Annotated[list[int] | None, _port("TCP: sends back every byte")] = None,
    tcp_banner: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="A line that TCP ports send first; {pod} and {namespace} filled in."
        ),
    ] = "",
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; :: is IPv6 and IPv4.")
    ] = "::",
    name: Annotated[
        str | None, typer.Option(metavar="POD", help="Default: $POD_NAME, else the host's name.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="Default: $POD_NAMESPACE, else default.")] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="K=V,K=V", help="Default: $POD_LABELS, else none.")
    ] = None,
) -> None:
    """A test workload that answers with what it received.

    The answer over HTTP is JSON: pod, namespace, labels, protocol, method, host, path, headers as received,
    remote {ip, port}, body {bytes, sha256}.

    A request may set how it is answered, by query parameter or by header x-echo-NAME: status=503,
    delay=200ms, size=1024 (that many bytes in place of the JSON, their hash in x-echo-sha256),
    header=name:value, trailer=name:value, fail=3 (503 for the first three requests of key=KEY, default the
    path), chunked=1, close=1.
    """
    from nodeagent.lab.echo import EchoOptions, run
    from nodeagent.lab.echo_message import Identity

    options = EchoOptions(
        tuple(http or ()),
        tuple(h2c or ()),
        tuple(grpc or ()),
        tuple(ws or ()),
        tuple(tcp or ()),
        tcp_banner,
        host,
    )
    try:
        options.check()
        identity = Identity.of(name, namespace, labels)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        run(options, identity)
    except ModuleNotFoundError as error:
        raise CapabilityError(
            f"echo needs the Python package {error.name!r}: pip install 'nodeagent[echo]'"
        ) from error
