"""The file of workloads that no CNI side tells of: the services of a machine, each by its cgroup.

workloads:
- name: nginx-1
  namespace: shop
  serviceAccount: nginx        # default: default
  cgroup: system.slice/nginx.service
  ports: [80, 8443]            # what arrives for these goes to the agent; others are left alone
  addresses: [10.0.0.5]        # at which the ports are its; default: all of the machine
  failMode: open               # default: closed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

from nodeagent.config.yaml_fields import Field, is_dns_label

MAX_WORKLOADS: Final = 128
"""As many as may share a namespace (NA_SHARED_WORKLOADS)."""
MAX_PORTS: Final = 64
MAX_ADDRESSES: Final = 16
_NAME_LIMIT: Final = 253  # RFC 1123 subdomain, as Kubernetes has it
T = TypeVar("T", int, bytes)
_KNOWN: Final = {"name", "namespace", "serviceAccount", "cgroup", "ports", "addresses", "failMode"}


@dataclass(frozen=True, slots=True)
class MachineWorkload:
    """A workload as the file tells of it. `cgroup` is a path in the hierarchy, addresses are 4 or 16 bytes each."""

    name: str
    namespace: str
    service_account: str
    cgroup: str
    ports: tuple[int, ...] = ()
    addresses: tuple[bytes, ...] = ()
    fail_open: bool = False

    @property
    def uid(self) -> str:
        """The same at every start."""
        return f"workloads/{self.namespace}/{self.name}"


def read_workloads(path: Path) -> tuple[MachineWorkload, ...]:
    """Read a file; ConfigError names the place of what is wrong."""
    items = Field.document(path).mapping({"workloads"}).get("workloads")
    fields = items.items() if items is not None else []
    if len(fields) > MAX_WORKLOADS:
        raise fields[MAX_WORKLOADS].error(f"more than {MAX_WORKLOADS} workloads, the limit of a namespace")
    found: list[MachineWorkload] = []
    for field in fields:
        workload = _read(field)
        _check_against(workload, found, field)
        found.append(workload)
    return tuple(found)


def _read(field: Field) -> MachineWorkload:
    members = field.mapping(_KNOWN)
    for needed in ("name", "namespace", "cgroup"):
        if needed not in members:
            raise field.error(f"needs `{needed}`")
    account = members.get("serviceAccount")
    fail_mode = members.get("failMode")
    return MachineWorkload(
        _name(members["name"]),
        members["namespace"].dns_label(),
        _name(account) if account is not None else "default",
        _cgroup(members["cgroup"]),
        tuple(_distinct(members, "ports", MAX_PORTS, Field.port)),
        tuple(_distinct(members, "addresses", MAX_ADDRESSES, _address)),
        fail_mode is not None and fail_mode.choice("open", "closed") == "open",
    )


def _name(field: Field) -> str:
    value = field.string()
    if len(value) > _NAME_LIMIT or not all(map(is_dns_label, value.split("."))):
        raise field.error(
            f"{value!r} is not a valid name: labels of lower case letters, digits and '-', joined by '.'"
        )
    return value


def _cgroup(field: Field) -> str:
    parts = PurePosixPath(field.string().strip("/")).parts
    if not parts or ".." in parts:
        raise field.error(
            "must be the path of a cgroup below the root of the hierarchy, such as system.slice/nginx.service"
        )
    return "/".join(parts)


def _address(field: Field) -> bytes:
    text = field.string()
    try:
        address = ip_address(text)
    except ValueError:
        raise field.error(f"{text!r} is not an IP address") from None
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        raise field.error(f"{text} is no address that others could reach")
    return address.packed


def _distinct(members: dict[str, Field], name: str, most: int, read: Callable[[Field], T]) -> Iterator[T]:
    """The values of a list, each once, `most` at most."""
    items = members[name].items() if name in members else []
    if len(items) > most:
        raise members[name].error(f"more than {most}")
    seen: set[T] = set()
    for item in items:
        value = read(item)
        if value in seen:
            raise item.error("is given twice")
        seen.add(value)
        yield value


def _check_against(workload: MachineWorkload, others: list[MachineWorkload], field: Field) -> None:
    """An error if a workload cannot be there beside others."""
    for other in others:
        who = f"{other.namespace}/{other.name}"
        if other.uid == workload.uid:
            raise field.error(f"{who} is given twice")
        if other.cgroup == workload.cgroup:
            raise field.error(f"cgroup {workload.cgroup} is {who}'s already")
        if set(other.addresses) & set(workload.addresses) or not (other.addresses or workload.addresses):
            for port in sorted(set(other.ports) & set(workload.ports)):
                raise field.error(f"port {port} is {who}'s already; give them addresses of their own")
