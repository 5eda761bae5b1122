"""A TCP server inside a namespace that tells each client which address it comes from, then echoes.

A client that sends END makes it close first.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from harness.netns import Namespace

END = b"\x04"


def _listen(port: int, address: str, reuse_port: bool) -> socket.socket:
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((address, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _converse(connection: socket.socket, peer: tuple[str, int]) -> None:
    with connection, contextlib.suppress(OSError):
        address = peer[0].removeprefix("::ffff:")
        connection.sendall(f"{address} {peer[1]}\n".encode())
        while (data := connection.recv(65536)) not in (b"", END):
            connection.sendall(data)


@contextlib.contextmanager
def peer_server(
    namespace: Namespace, port: int, *, address: str = "::", reuse_port: bool = False
) -> Iterator[None]:
    """Serve until the block ends. Each client is sent `ADDRESS PORT\\n` first."""
    listener = namespace.run(lambda: _listen(port, address, reuse_port))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = listener.accept()
                threading.Thread(target=_converse, args=(connection, peer), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Wakes accept(), which close() alone would not.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def dial(
    namespace: Namespace,
    address: str,
    port: int,
    *,
    options: tuple[tuple[int, int, int | bytes], ...] = (),
    source: tuple[str, int] | None = None,
    timeout: float = 5.0,
) -> socket.socket:
    """Connect from inside the namespace; `options` are set on the socket before."""

    def connect() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        client = socket.socket(family, socket.SOCK_STREAM)
        client.settimeout(timeout)
        try:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for level, option, value in options:
                client.setsockopt(level, option, value)
            if source is not None:
                client.bind(source)
            client.connect((address, port))
        except OSError:
            client.close()
            raise
        return client

    return namespace.run(connect)


def read_line(client: socket.socket) -> str:
    """What the server says first, without the end of the line."""
    line = b""
    while not line.endswith(b"\n"):
        # No further: what follows is the echo.
        piece = client.recv(1)
        assert piece, f"connection closed after {line!r}"
        line += piece
    return line.decode().strip()


def exchange(client: socket.socket, message: bytes) -> bytes:
    """Send, and read as much back."""
    client.sendall(message)
    answer = b""
    while len(answer) < len(message):
        piece = client.recv(65536)
        assert piece, f"connection closed after {len(answer)} of {len(message)} bytes"
        answer += piece
    return answer
