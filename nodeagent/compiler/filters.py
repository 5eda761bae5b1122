"""Filters of a listener: their types and their configurations, also where a TypedStruct hides them."""

from __future__ import annotations

from typing import Any, Final

_TYPED_STRUCTS: Final = ("xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct")


def type_of(item: Any) -> str:
    """The type of a filter's configuration; a TypedStruct tells the type of what it stands for."""
    url = item.typed_config.type_url
    if url.endswith(_TYPED_STRUCTS):
        url = _typed_struct(item).type_url
    return str(url.rpartition("/")[2])


def unpack(item: Any, message_class: Any) -> Any:
    """The configuration of a filter; ValueError if it is no such message."""
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError

    name = item.name or message_class.DESCRIPTOR.full_name
    try:
        if item.typed_config.type_url.endswith(_TYPED_STRUCTS):
            data = json_format.MessageToDict(_typed_struct(item).value)
            return json_format.ParseDict(data, message_class())
        return message_class.FromString(item.typed_config.value)
    except (DecodeError, json_format.ParseError) as error:
        raise ValueError(f"filter {name}: its configuration cannot be read: {error}") from None


def _typed_struct(item: Any) -> Any:
    """Both kinds have the same fields and numbers."""
    from udpa.type.v1 import typed_struct_pb2

    return typed_struct_pb2.TypedStruct.FromString(item.typed_config.value)
