"""How a caller is told no: a gRPC status with a reason that names the mend."""

from __future__ import annotations

import grpc


class Refusal(Exception):
    """A call is refused. `message` goes to the caller; `reason` is a word of a bounded set, for metrics."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str) -> None:
        self.code = code
        self.reason = reason
        self.message = message
        super().__init__(message)


def unauthenticated(message: str, reason: str = "token") -> Refusal:
    """Who calls is not known."""
    return Refusal(grpc.StatusCode.UNAUTHENTICATED, reason, message)


def denied(message: str, reason: str = "identity") -> Refusal:
    """Who calls may not have this."""
    return Refusal(grpc.StatusCode.PERMISSION_DENIED, reason, message)


def invalid(message: str, reason: str = "request") -> Refusal:
    """The request itself is wrong."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, reason, message)


def exhausted(message: str, reason: str) -> Refusal:
    """A limit bites."""
    return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, message)
