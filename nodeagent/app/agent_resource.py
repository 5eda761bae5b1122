"""xDS resources as JSON, also where they hold extensions whose messages this program does not know."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf import descriptor_pool, json_format, message_factory, struct_pb2

# Stands for an Any of an unknown type while the rest is printed; no resource has such a key.
_UNKNOWN: Final = "nodeagent.unknown-type"


def resource_json(message: Any) -> dict[str, Any]:
    """Return a received resource in proto3 JSON mapping.

    An Any of a type that is not known here (an extension of Envoy's or of Istio's that the agent has no use for)
    is `{"@type": its type URL, "value": its bytes in base64}`.
    """
    printable = type(message)()
    printable.CopyFrom(message)
    _mask(printable)
    result: dict[str, Any] = _unmask(json_format.MessageToDict(printable))
    return result


def _mask(message: Any) -> None:
    """Replace, at any depth, each Any of an unknown type by one that can be printed."""
    if message.DESCRIPTOR.full_name != "google.protobuf.Any":
        for part in _parts(message):
            _mask(part)
        return
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(message.type_url.rpartition("/")[2])
    except KeyError:
        unknown = {_UNKNOWN: message.type_url, "value": base64.b64encode(message.value).decode()}
        message.Pack(json_format.ParseDict(unknown, struct_pb2.Struct()))
        return
    inner = message_factory.GetMessageClass(descriptor).FromString(message.value)
    _mask(inner)
    message.value = inner.SerializeToString()


def _parts(message: Any) -> Iterator[Any]:
    """Yield the messages that are fields of a message."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                yield from value.values()
        elif isinstance(value, field.message_type._concrete_class):
            yield value
        else:
            yield from value


def _unmask(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmask(item) for item in value]
    if not isinstance(value, dict):
        return value
    masked = value.get("value")
    if isinstance(masked, dict) and _UNKNOWN in masked:
        return {"@type": masked[_UNKNOWN], "value": masked["value"]}
    return {key: _unmask(item) for key, item in value.items()}
