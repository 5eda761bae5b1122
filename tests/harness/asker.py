"""Runs in a pod: makes the requests and connections given as JSON on standard input, prints what became of each.

A request is raw bytes, so that nothing between it and the wire corrects it. It reads lines, each a JSON list of
`{"host", "port", "http"}` or `{"host", "port", "tcp"}`, and prints a line for each, a JSON list: the status of an
HTTP answer as a number, `reset` where the connection was refused, reset or closed without an answer, and for TCP
`open` where what was sent came back.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

TIMEOUT = 5.0


def ask(item: dict[str, Any]) -> Any:
    """One request or connection."""
    sent = item.get("http") or item["tcp"]
    try:
        with socket.create_connection((item["host"], item["port"]), timeout=TIMEOUT) as connection:
            connection.sendall(sent.encode("latin-1"))
            answer = connection.recv(65536)
    except TimeoutError:
        return "timeout"
    except OSError:
        return "reset"
    if not answer:
        return "reset"
    if "tcp" in item:
        return "open" if answer == sent.encode("latin-1") else repr(answer)
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else repr(answer)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps([ask(item) for item in json.loads(line)]), flush=True)
