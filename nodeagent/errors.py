"""The exception tree. Messages name the thing, the place and the mend.

NodeagentError
├── ConfigError            a setting or a file of the user's is wrong
│   └── ResourceError      one resource of a file: carries file, object and field path
├── CapabilityError        this machine lacks something; says what and how to get it
├── XdsError               an xDS exchange went wrong
│   └── RejectedResource   one received resource cannot be used; the others are
├── CompileError           received configuration does not make a consistent snapshot
├── DataplaneError         the kernel or the engine refused
│   ├── BpfError
│   ├── EngineError
│   ├── NetnsError
│   └── NftError
├── EnrollError            a workload could not be taken on
├── IdentityError          a certificate could not be issued or obtained; carries why in one word
├── AdminError             the admin socket could not be asked
├── QueryError             a question to the admin API cannot be answered as it was put
├── LabError               a lab verb failed
└── BenchError             something could not be measured
"""

from __future__ import annotations


class NodeagentError(Exception):
    """Base of all errors that nodeagent raises on purpose; the CLI prints them without a traceback."""


class ConfigError(NodeagentError):
    """A setting or a file that the user gave is wrong."""


class ResourceError(ConfigError):
    """One resource of a configuration file is wrong.

    `source` is the file (with line, where known), `resource` is `Kind namespace/name`, `path` the field.
    """

    def __init__(self, message: str, *, source: str = "", resource: str = "", path: str = "") -> None:
        self.message = message
        self.source = source
        self.resource = resource
        self.path = path
        super().__init__(": ".join(part for part in (source, resource, path, message) if part))


class CapabilityError(NodeagentError):
    """This machine lacks something that was asked for."""


class XdsError(NodeagentError):
    """An xDS exchange failed."""


class RejectedResource(XdsError):
    """One received resource cannot be used; `name` is its xDS resource name."""

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        self.message = message
        super().__init__(f"{name}: {message}")


class CompileError(NodeagentError):
    """Received configuration does not make a consistent snapshot."""


class DataplaneError(NodeagentError):
    """The kernel or the engine refused something."""


class BpfError(DataplaneError):
    """A BPF object, link or map was refused; carries the verifier's last lines."""


class BpfMapFullError(BpfError):
    """A BPF map has no room for another key."""


class EngineError(DataplaneError):
    """The engine refused a call."""


class NetnsError(DataplaneError):
    """A network namespace could not be entered or read."""


class NftError(DataplaneError):
    """A ruleset could not be applied; carries what nftables said."""


class EnrollError(NodeagentError):
    """A workload could not be taken on or let go."""


class IdentityError(NodeagentError):
    """A certificate could not be issued or obtained; `reason` is a word of a bounded set, for metrics."""

    def __init__(self, message: str, reason: str = "other") -> None:
        self.reason = reason
        super().__init__(message)


class AdminError(NodeagentError):
    """The admin socket of a running agent or control plane could not be asked."""


class QueryError(NodeagentError):
    """A question to the admin API cannot be answered: a parameter is unknown or cannot be read, or who it is about is
    not here."""


class LabError(NodeagentError):
    """A lab verb failed."""


class BenchError(NodeagentError):
    """Something could not be measured."""
